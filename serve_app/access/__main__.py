"""`python -m serve_app.access NAME`: make an API key, and print what belongs into the file of keys."""

import re
from typing import Annotated

import typer

from serve_app.access.clients import Scope
from serve_app.access.keys import NAME_PATTERN, hash_of, new_key


def main(
    name: Annotated[str, typer.Argument(help="The client: letters, digits, '.', '_' and '-'.")],
    scope: Annotated[list[Scope], typer.Option(help="What the client may do; may be given several times.")] = [  # noqa: B006 - typer's way to state a default
        Scope.SUBMIT,
        Scope.READ,
    ],
) -> None:
    """Make an API key. It is shown once; the file of keys holds its hash alone."""
    if not re.match(NAME_PATTERN, name):
        raise typer.BadParameter("A name has up to 64 letters, digits, '.', '_' and '-'.")
    key = new_key()
    scopes = ", ".join(f'"{one}"' for one in scope)
    typer.echo(f"The key, for the client alone:\n\n  {key}\n\nFor the file that keys_file names:\n")
    typer.echo(f'[clients."{name}"]\nscopes = [{scopes}]\nkeys = ["{hash_of(key)}"]')


if __name__ == "__main__":
    typer.run(main)
