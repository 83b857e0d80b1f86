"""The command line that repeats a call of the kit, for its report; secrets are left out of it."""

import shlex
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit, urlunsplit

import typer

from stress.kit_settings import KitSettings

PROGRAM = "python -m stress.cli"
_LEFT_OUT = frozenset({"callback_secret"})
_SHOWN_VARIABLES = {
    "stress_concurrent": "STRESS_TEST_CONCURRENT",
    "stress_sequential": "STRESS_TEST_SEQUENTIAL",
    "enable_training": "ENABLE_TRAINING",
}


def given_options(context: typer.Context) -> dict[str, tuple[str, ...]]:
    """Return the words of each option that was given on the command line, by the option's parameter."""
    given = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in _LEFT_OUT:
            given[name] = tuple(_words(max(parameter.opts, key=len), context.params[name]))
    return given


def repeating(command: str, given: Mapping[str, tuple[str, ...]], settings: KitSettings) -> str:
    """Return the call as a line for a shell; addresses and amounts that the environment named are in it too."""
    addresses = {
        "miner_url": ("--miner-url", settings.miner_url),
        "callback_base": ("--callback-base", settings.callback_base_url),
    }
    variables = [
        f"{variable}={str(getattr(settings, name)).lower()}"
        for name, variable in _SHOWN_VARIABLES.items()
        if name in settings.model_fields_set
    ]
    words = [word for option in {**addresses, **given}.values() for word in option]
    return " ".join([*variables, PROGRAM, shlex.join([command, *words])])


def _words(option: str, value: object) -> Iterator[str]:
    if value is True:
        yield option
        return
    for one in value if isinstance(value, list | tuple) else (value,):
        yield option
        yield _without_credentials(option, str(one))


def _without_credentials(option: str, value: str) -> str:
    if option == "--header":
        return f"{value.partition(':')[0]}: ..."
    if option == "--metrics-url":
        split = urlsplit(value)
        return urlunsplit((split.scheme, split.netloc.rpartition("@")[2], split.path, "", ""))
    return value
