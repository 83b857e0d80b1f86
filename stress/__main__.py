"""`python -m stress` is `python -m stress.cli`."""

from stress.cli import app

app(prog_name="python -m stress")
