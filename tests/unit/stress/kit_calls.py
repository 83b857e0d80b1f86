"""Calls of the command line in this process."""

from collections.abc import Callable
from typing import TypeAlias

from typer.testing import Result

SMALL = ("--width", "128", "--height", "128", "--steps", "2", "--poll-interval", "0.05", "--poll-budget", "60")

Kit: TypeAlias = Callable[..., Result]
"""Calls the command line with these arguments, and a receiver of its own on a free port of loopback."""
