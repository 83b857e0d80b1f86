"""What the launcher makes of addresses: the demo's look at its port, and the old server's variables."""

import socket
from pathlib import Path

import pytest
import yaml

from launcher.demo import _answers
from launcher.local import Address, LaunchError, LocalDarkroom
from stress.background_server import BackgroundServer
from tests.apps import free_port


def test_the_demo_refuses_to_use_something_else_on_its_port() -> None:
    async def stranger(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b'{"name": "something else"}'})

    with BackgroundServer(stranger) as server, pytest.raises(LaunchError, match="not Darkroom"):
        _answers(Address("127.0.0.1", server.port))
    assert _answers(Address("127.0.0.1", free_port())) is False


def test_an_address_of_version_six_stands_in_brackets() -> None:
    assert Address("::1", 8091).url == "http://[::1]:8091"
    assert Address("::", 8091).url == "http://127.0.0.1:8091"


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"name": "darkroom", "import_path": "serve_app.app:build"}]}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MINER_SERVER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(LaunchError, match="Something listens on port"):
            LocalDarkroom(config, tmp_path / "home").start()


def test_the_old_servers_address_variables_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"name": "darkroom", "import_path": "serve_app.app:build"}]}))
    monkeypatch.setenv("MINER_SERVER_HOST", "0.0.0.0")  # noqa: S104 - named, not bound
    monkeypatch.setenv("MINER_SERVER_PORT", "18091")
    darkroom = LocalDarkroom(config, tmp_path / "home")
    assert darkroom.address.url == "http://127.0.0.1:18091"
    monkeypatch.setenv("MINER_SERVER_PORT", "http")
    with pytest.raises(LaunchError, match="MINER_SERVER_PORT is 'http'"):
        LocalDarkroom(config, tmp_path / "home")
