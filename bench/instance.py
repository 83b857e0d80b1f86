"""A Ray Serve instance of its own to measure: started, waited for, and gone when the block ends."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil
import yaml

from bench.config import ROOT, Document, free_port
from bench.errors import BenchError
from bench.processes import role
from bench.records import ProxyModeName
from launcher.local import MARKER, health_at, interrupt, kill_instance, processes_of

READY_TIMEOUT_S = 300.0
"""Sixty-four replicas on two cores need minutes."""
STOP_TIMEOUT_S = 40.0
_POLL_S = 0.2
_ENDING_S = 5.0


def has_replicas(url: str) -> bool:
    """Tell whether the Darkroom at `url` accepts jobs, and has a replica for each of its models."""
    health = health_at(url)
    return bool(health and health["accepting"] and all(m["running_replicas"] for m in health["models"].values()))


class Instance:
    """Runs a Serve configuration behind one kind of proxy. `home` gets the configuration and the log.

    `left_running`, after the block: what did not end by itself within 5 s of the first process, and was killed.
    """

    def __init__(self, config: Document, home: Path, mode: ProxyModeName = "default") -> None:
        self.mode = mode
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"
        self._config = config
        self._home = home
        self._name = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self.left_running: tuple[str, ...] = ()
        # The paths of Ray's sockets must stay below 108 bytes.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="bench-"))

    def __enter__(self) -> Self:
        """Start the processes."""
        self._home.mkdir(parents=True, exist_ok=True)
        config = self._home / "serve_config.yaml"
        config.write_text(yaml.safe_dump(self._config, sort_keys=False))
        command = [sys.executable, "-m", "bench.host", str(config), str(self._ray_folder / "ray")]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """What the instance's first process printed."""
        return self._home / "serve.log"

    @property
    def logs(self) -> Path:
        """Ray's log folder; it is gone when the instance is."""
        return self._ray_folder / "ray" / "session_latest" / "logs"

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run now."""
        return list(processes_of(self._name))

    def wait_until(self, what: str, ready: Callable[[], bool]) -> None:
        """Return when `ready` does. Raises `BenchError` if the instance ends before, or after 300 s."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ready():
            if self._process is None or self._process.poll() is not None:
                raise BenchError(f"The instance ended before {what}; see {self.log}.")
            if time.monotonic() > deadline:
                raise BenchError(f"Not after {READY_TIMEOUT_S:g} s: {what}; see {self.log}.")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every process and remove Ray's files."""
        if self._process is not None:
            interrupt(self._process, STOP_TIMEOUT_S)
        # Ray's own processes need a moment to notice that the first one is gone.
        _, alive = psutil.wait_procs(self.processes(), timeout=_ENDING_S)
        self.left_running = tuple(sorted(role(process) for process in alive))
        kill_instance(self._name)
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DARKROOM_", "COVERAGE"))
        }
        ours = {
            MARKER: self._name,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            # As `make serve` does, and for its reasons.
            "RAY_AUTH_MODE": "token",
            "SPT_NOENV": "1",
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        }
        return inherited | ours | (self._haproxy() if self.mode == "haproxy" else {})

    def _haproxy(self) -> dict[str, str]:
        # Everything that has a fixed place by default gets one of this instance's own.
        folder = self._ray_folder / "haproxy"
        folder.mkdir(exist_ok=True)
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        }

    def haproxy_files(self) -> tuple[str, ...]:
        """Return the names of the files that HAProxy has at the moment, by default in /tmp/haproxy-serve."""
        folder = self._ray_folder / "haproxy"
        return tuple(sorted(path.name for path in folder.rglob("*") if not path.is_dir()))
