"""What the tests of the kit share: a command line that is called, and a service for the client."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_service import FaultyService
from kit_calls import Kit
from scripted_service import ScriptedService
from typer.testing import CliRunner, Result

from stress import calls
from stress.cli import app


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("ASYNC_", "STRESS_TEST_", "ENABLE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def base() -> str:
    """A base URL for a receiver on a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def kit(base: str, tmp_path: Path) -> Kit:
    """Call the command line in this process, with a receiver of its own on a free port of loopback."""

    def call(*arguments: str) -> Result:
        own = ("--callback-base", base, "--callback-bind-host", "127.0.0.1", "--pictures", str(tmp_path / "pictures"))
        return CliRunner().invoke(app, [*arguments, *own])

    return call


@pytest.fixture
def service() -> Iterator[FaultyService]:
    with FaultyService() as service:
        yield service


@pytest.fixture
def quick_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client repeat its calls at once."""
    monkeypatch.setattr(calls, "FIRST_BACKOFF_S", 0.001)


@pytest.fixture
def scripted_service(quick_repeats: None) -> Iterator[ScriptedService]:
    """A running service for the client."""
    service = ScriptedService()
    with service.server:
        yield service
