"""`python -m serve_app.access NAME`: make an API key, and print what belongs into the file of keys."""

import re
from typing import Annotated

import typer

from serve_app.access.clients import Scope
from serve_app.access.keys import NAME_PATTERN, hash_of, new_key, new_signing_secret


def main(
    name: Annotated[str, typer.Argument(help="The client: letters, digits, '.', '_' and '-'.")],
    scope: Annotated[list[Scope], typer.Option(help="What the client may do; may be given several times.")] = [  # noqa: B006 - typer's way to state a default
        Scope.SUBMIT,
        Scope.READ,
    ],
    sign: Annotated[bool, typer.Option("--sign", help="Make a secret for HMAC signatures of callbacks too.")] = False,
) -> None:
    """Make an API key. It is shown once; the file of keys holds its hash alone."""
    if not re.match(NAME_PATTERN, name):
        raise typer.BadParameter("A name has up to 64 letters, digits, '.', '_' and '-'.")
    key = new_key()
    scopes = ", ".join(f'"{one}"' for one in scope)
    entry = f'[clients."{name}"]\nscopes = [{scopes}]\nkeys = ["{hash_of(key)}"]'
    typer.echo(f"The key, for the client alone:\n\n  {key}\n")
    if sign:
        secret = new_signing_secret()
        entry += f'\nsigning_secret = "{secret}"'
        typer.echo(f"The secret to check callbacks with, for the client alone:\n\n  {secret}\n")
    typer.echo(f"For the file that keys_file names:\n\n{entry}")


if __name__ == "__main__":
    typer.run(main)
