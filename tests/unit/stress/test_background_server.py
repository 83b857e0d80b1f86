import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI

from stress import background_server
from stress.background_server import BackgroundServer
from stress.errors import BackgroundServerError


def test_an_app_that_does_not_answer_its_probe_is_not_ready_and_leaves_nothing_behind() -> None:
    server = BackgroundServer(FastAPI(), probe_path="/absent")

    with pytest.raises(BackgroundServerError, match="/absent answered HTTP 404"):
        server.start()

    assert not server.is_running
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_an_address_of_another_machine_is_a_clear_error() -> None:
    with pytest.raises(BackgroundServerError, match=r"Cannot listen on 192\.0\.2\.1:0"):
        BackgroundServer(FastAPI(), "192.0.2.1").start()


def test_a_request_beyond_the_grace_is_cut_off_by_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_server, "GRACE_S", 0.05)
    app = FastAPI()
    arrived = threading.Event()

    @app.get("/slow")
    async def slow() -> None:
        arrived.set()
        await anyio.sleep_forever()

    with ThreadPoolExecutor(1) as pool:
        with BackgroundServer(app, probe_path="/openapi.json") as server:
            asked = pool.submit(httpx.get, f"{server.url}/slow", timeout=30, trust_env=False)
            assert arrived.wait(10)
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 5
        with pytest.raises(httpx.TransportError):
            asked.result(10)


def test_an_idle_connection_does_not_hold_up_stop() -> None:
    with httpx.Client(trust_env=False) as client:
        with BackgroundServer(FastAPI(), probe_path="/openapi.json") as server:
            client.get(f"{server.url}/openapi.json")
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 1


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")])  # noqa: S104
def test_the_url_is_one_that_a_caller_on_this_machine_can_use(host: str, shown: str) -> None:
    with BackgroundServer(FastAPI(), host, probe_path="/openapi.json") as server:
        assert server.url == f"http://{shown}:{server.port}"
        assert httpx.get(f"{server.url}/openapi.json", trust_env=False).status_code == 200


def test_the_receiver_runs_as_a_module_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress.callback_server", "--host", "127.0.0.1", "--port", "0"]
    # A test run in the background of a script ignores SIGINT, and its children would as well.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:  # noqa: PLW1509
        try:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            address = first_line.removeprefix("Callback server listening on ").strip()
            assert httpx.get(f"{address}/callbacks", trust_env=False).json() == {"callbacks": []}
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()

    assert rest == "Stopping callback server...\n"
    assert process.returncode == 0


def test_the_module_ends_with_2_and_a_sentence_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        command = [sys.executable, "-m", "stress.callback_server", "--host", "127.0.0.1", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"Cannot listen on 127.0.0.1:{port}: ")
