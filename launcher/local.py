"""One Darkroom on this machine, on a Ray instance of its own, from start to the last process gone."""

import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import yaml

MARKER = "DARKROOM_INSTANCE"
"""Environment variable by which every process of an instance is recognised, whoever its parent is."""
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 25.0
"""How long `serve run` may take to shut down by itself before what is left is killed; jobs survive in the store."""
_POLL_S = 0.25


class LaunchError(Exception):
    """Darkroom could not be started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service listens."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """The host for clients on this machine."""
        return "127.0.0.1" if self.host in {"0.0.0.0", "::", ""} else self.host  # noqa: S104 - compared, not bound

    @property
    def url(self) -> str:
        """The base URL for clients on this machine."""
        host = self.reachable_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def interrupt(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End a process as Ctrl-C does, and kill it if it has not ended after `timeout_s`; one that has ended is left."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class LocalDarkroom:
    """Runs `serve run` on a configuration file. `home` keeps data, the configuration in force, the instance's name."""

    def __init__(self, config: Path, home: Path) -> None:
        self._home = home.absolute()
        self._config: dict[str, Any] = yaml.safe_load(config.read_text())
        self._folder = config.absolute().parent
        self.instance = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._apply_old_names()

    def _apply_old_names(self) -> None:
        """Honour the address variables of the old server: Serve reads these from the file only."""
        options = self._config.setdefault("http_options", {})
        before = self.address.url
        if host := os.environ.get("MINER_SERVER_HOST"):
            options["host"] = host
        if port := os.environ.get("MINER_SERVER_PORT"):
            if not port.isdecimal():
                raise LaunchError(f"MINER_SERVER_PORT is {port!r}; set it to a port number.")
            options["port"] = int(port)
        for application in self._config["applications"]:
            arguments = application.setdefault("args", {})
            arguments.setdefault("data_dir", str(self._home / "data"))
            if arguments.get("service_url", before) == before:
                arguments["service_url"] = self.address.url

    @property
    def address(self) -> Address:
        """Where this instance listens once it runs."""
        options = self._config["http_options"]
        return Address(options.get("host", "127.0.0.1"), options.get("port", 8000))

    def start(self, log: int | None = None) -> None:
        """Start the processes; their output goes to the file descriptor `log`, or to ours.

        Raises `LaunchError` if an instance runs from this folder already, or something listens on the port.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        self._refuse_a_second()
        config = self._home / "serve_config.yaml"
        config.write_text(yaml.safe_dump(self._config, sort_keys=False))
        (self._home / "instance").write_text(self.instance)
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            env=self._environment(),
            cwd=self._folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Started in the background of a script we ignore SIGINT, and a child would as well; `stop` sends it.
            preexec_fn=_heed_interrupts,  # noqa: PLW1509 - nothing of ours runs in a thread yet
        )

    def _refuse_a_second(self) -> None:
        # Serve's proxies share ports silently, and the second of two instances on one store accepts nothing.
        note = self._home / "instance"
        if note.exists() and any(processes_of(note.read_text().strip())):
            raise LaunchError("Darkroom runs already from this folder. `make stop` ends it.")
        address = self.address
        try:
            socket.create_connection((address.reachable_host, address.port), timeout=1.0).close()
        except OSError:
            return
        raise LaunchError(f"Something listens on port {address.port} already. Set MINER_SERVER_PORT.")

    def _environment(self) -> dict[str, str]:
        ours = {
            MARKER: self.instance,
            # A Ray instance of its own: never the cluster that some file or variable points to.
            "RAY_ADDRESS": "local",
            # Ray's ports other than HTTP listen on all interfaces; a token keeps strangers from running code there.
            "RAY_AUTH_MODE": "token",
            # Ray's agents write their title over their environment otherwise, and with it the marker.
            "SPT_NOENV": "1",
        }
        theirs = {
            "RAY_USAGE_STATS_ENABLED": "0",
            # Serve replaces a proxy after three failed checks: half a minute with its default of 10 s.
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
            # Ten times a second by default, in each process: a fifth of what an idle replica costs. Metrics are read
            # every ten seconds or so.
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
            **os.environ,
        }
        return ours | theirs | {name: ours[name] for name in (MARKER, "RAY_ADDRESS", "RAY_AUTH_MODE", "SPT_NOENV")}

    def wait_until_ready(self, on_wait: Callable[[str], None] = lambda _: None) -> None:
        """Return when jobs are accepted; models may still load. Raises `LaunchError` if that takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise LaunchError("The service ended while starting; its log says why.")
            health = health_at(self.address.url)
            if health and health["accepting"]:
                return
            on_wait("starting the service" if health else "starting Ray Serve")
            time.sleep(_POLL_S)
        raise LaunchError(f"The service was not ready within {START_TIMEOUT_S:g} s; its log says why.")

    def wait(self) -> int:
        """Wait for the service to end by itself and return its exit status."""
        assert self._process is not None  # noqa: S101 - called after start
        return self._process.wait()

    def stop(self) -> None:
        """End the service: politely first, then whatever is left of it."""
        if self._process is not None:
            interrupt(self._process, STOP_TIMEOUT_S)
        kill_instance(self.instance)
        note = self._home / "instance"
        if note.exists() and note.read_text().strip() == self.instance:
            note.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def answer_at(url: str) -> httpx.Response | None:
    """Return what `GET url` answers, or None if nothing answers within five seconds."""
    try:
        return _client().get(url)
    except httpx.HTTPError:
        return None


def health_at(url: str) -> dict[str, Any] | None:
    """Return what `GET /health` answers there, or None if nothing answers in its form."""
    answer = answer_at(f"{url}/health")
    try:
        health: dict[str, Any] | None = answer.json() if answer is not None else None
    except ValueError:
        return None
    return health if isinstance(health, dict) and "accepting" in health else None


@functools.cache
def _client() -> httpx.Client:
    # Each client reads all certificates of the machine: 20 to 40 ms of a processor that a starting service waits for.
    # No connection is kept: the proxy that it leads to may be gone by the next question.
    return httpx.Client(timeout=5, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def processes_of(instance: str) -> Iterator[psutil.Process]:
    """Yield the processes that belong to an instance."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == instance and process.pid != os.getpid():
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def kill_instance(instance: str) -> int:
    """Kill what is left of an instance and wait until it is gone. Returns how many processes that were."""
    killed = 0
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while left := list(processes_of(instance)):
        if time.monotonic() > deadline:
            raise LaunchError(f"{len(left)} processes of the service do not end; look at them with ps.")
        for process in left:
            killed += 1
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=2)
    return killed
