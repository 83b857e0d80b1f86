"""The launcher, as `make serve` and `make stop` use it: one instance, killed whole, started again."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from launcher.demo import _answers
from launcher.local import Address, LaunchError, LocalDarkroom, kill_instance, processes_of
from stress.background_server import BackgroundServer
from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from tests.apps import free_port
from tests.e2e.conftest import SECRET


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a fast model, on a free port."""
    model = {"name": "fast", "engine": "simulated", "simulated": {"step_seconds": 0.05}}
    application = {
        "name": "darkroom",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {"models": [model], "lease_s": 5},
    }
    file = tmp_path / "config.yaml"
    http = {"host": "127.0.0.1", "port": free_port()}
    file.write_text(yaml.safe_dump({"proxy_location": "HeadOnly", "http_options": http, "applications": [application]}))
    return file


@pytest.fixture
def start(config: Path, tmp_path: Path) -> Iterator[Callable[[], LocalDarkroom]]:
    started: list[LocalDarkroom] = []

    def start_one() -> LocalDarkroom:
        darkroom = LocalDarkroom(config, tmp_path / "home")
        started.append(darkroom)
        with (tmp_path / "log").open("ab") as log:
            darkroom.start(log=log.fileno())
        darkroom.wait_until_ready()
        return darkroom

    yield start_one
    for darkroom in started:
        darkroom.stop()


def sessions_of(darkroom: LocalDarkroom) -> list[psutil.Process]:
    """Every process in the sessions of an instance's processes: Ray's agents too, which rename themselves."""
    sessions = {os.getsid(process.pid) for process in processes_of(darkroom.instance)}
    return [process for process in psutil.process_iter() if os.getsid(process.pid) in sessions]


@pytest.mark.defect("D1")
@pytest.mark.defect("D21")
def test_open_jobs_go_on_after_the_whole_instance_was_killed(
    start: Callable[[], LocalDarkroom], receiver: CallbackServer
) -> None:
    first = start()
    with DarkroomClient(first.address.url) as client:
        jobs = [
            client.submit(
                prompt=str(n),
                width=64,
                height=64,
                num_inference_steps=20,
                seed=n,
                callback_url=receiver.callback_url,
                callback_secret=SECRET,
            ).job_id
            for n in range(8)
        ]
        receiver.wait_for(jobs[0], timeout_s=30)

    everything = sessions_of(first)
    assert kill_instance(first.instance) > 3
    assert psutil.wait_procs(everything, timeout=5)[1] == []

    second = start()
    with DarkroomClient(second.address.url) as client:
        for job_id in jobs:
            assert client.wait(job_id, timeout_s=60).status == "completed"
    for job_id in jobs:
        assert receiver.wait_for(job_id, timeout_s=30)
    second.stop()
    assert list(processes_of(second.instance)) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(second.address.url, trust_env=False)


def test_the_demo_refuses_to_use_something_else_on_its_port() -> None:
    async def stranger(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b'{"name": "something else"}'})

    with BackgroundServer(stranger) as server, pytest.raises(LaunchError, match="not Darkroom"):
        _answers(Address("127.0.0.1", server.port))
    assert _answers(Address("127.0.0.1", free_port())) is False


def test_the_old_servers_address_variables_are_honoured(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINER_SERVER_HOST", "0.0.0.0")  # noqa: S104 - named, not bound
    monkeypatch.setenv("MINER_SERVER_PORT", "18091")
    darkroom = LocalDarkroom(config, tmp_path / "home")
    assert darkroom.address.url == "http://127.0.0.1:18091"
    monkeypatch.setenv("MINER_SERVER_PORT", "http")
    with pytest.raises(LaunchError, match="MINER_SERVER_PORT is 'http'"):
        LocalDarkroom(config, tmp_path / "home")
