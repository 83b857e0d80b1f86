"""A Darkroom of the driver's own with its receiver and, if wanted, a PostgreSQL server; and what is done to them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import sqlalchemy as sa
import yaml

from deployments.models import ModelSettings
from launcher.local import LocalDarkroom, kill_instance, processes_of
from stress.callback_server import CallbackServer
from tests.apps import free_port
from tests.chaos.faults import Action, Fault, Kind
from tests.postgres_server import PostgresServer, running_server

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
SECRET = "chaos-secret"
FIND_S = 60.0
"""How long a process that is being replaced is looked for."""
_TITLES = {
    Kind.TRACKER: "ray::TrackerActor",
    Kind.INGRESS: "ray::ServeReplica:darkroom:Ingress",
    Kind.MODEL: "ray::ServeReplica:darkroom:TextToImage",
    Kind.PROXY: "ray::ProxyActor",
    Kind.CONTROLLER: "ray::ServeController",
}


class World:
    """The shipped configuration on a free port, in `home`; with `models`, these instead of the shipped ones.

    Use it as a context manager.
    """

    def __init__(
        self, home: Path, *, postgresql: bool, most_callbacks: int, models: Sequence[ModelSettings] = ()
    ) -> None:
        self._most_callbacks = most_callbacks
        self._home = home
        self._wants_postgresql = postgresql
        self._stack = ExitStack()
        self._timers: list[threading.Timer] = []
        self._postgres: PostgresServer | None = None
        self._config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        self._config["http_options"]["port"] = free_port()
        (application,) = self._config["applications"]
        application["args"]["service_url"] = self.url
        if models:
            application["args"]["models"] = [model.model_dump(mode="json", exclude_unset=True) for model in models]

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://127.0.0.1:{self._config['http_options']['port']}"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of processes that there are."""
        return tuple(kind for kind in Kind if kind is not Kind.POSTGRESQL or self._wants_postgresql)

    @property
    def pictures(self) -> Path:
        """The folder of the artifacts."""
        return self._home / "data" / "pictures"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self._begin()
            undo.pop_all()
        return self

    def _begin(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        if self._wants_postgresql:
            self._postgres = self._stack.enter_context(running_server())
            os.environ["DARKROOM_STORE_URL"] = self._postgres.url()
            self._stack.callback(os.environ.pop, "DARKROOM_STORE_URL", None)
        # Ray's logs lie with the rest, also those of instances that were killed.
        os.environ["RAY_TMPDIR"] = str(self._home)
        self._stack.callback(os.environ.pop, "RAY_TMPDIR", None)
        self.receiver = self._stack.enter_context(CallbackServer(secret=SECRET, max_entries=self._most_callbacks))
        self._log = self._stack.enter_context((self._home / "service.log").open("ab"))
        self._stack.callback(self._end)
        self._start()

    def __exit__(self, *_: object) -> None:
        self.mend()
        self._stack.close()

    def _start(self) -> None:
        file = self._home / "chaos.yaml"
        file.write_text(yaml.safe_dump(self._config))
        self._darkroom = LocalDarkroom(file, self._home)
        self._darkroom.start(log=self._log.fileno())
        self._darkroom.wait_until_ready()

    def _end(self) -> None:
        self._darkroom.stop()

    def mend(self) -> None:
        """Let everything that was stopped go on."""
        for timer in self._timers:
            timer.join()
        self._timers.clear()

    def do(self, fault: Fault) -> float:
        """Do it. What is killed of our own is started again at once; what is stopped goes on after its time.

        Returns the moment at which it happened, in seconds since 1970.
        """
        match fault.kind:
            case Kind.INSTANCE:
                moment = time.time()
                kill_instance(self._darkroom.instance)
                self._start()
            case Kind.RECEIVER:
                moment = self._disturb_receiver(fault)
            case Kind.POSTGRESQL:
                moment = self._disturb_postgresql(fault)
            case _:
                moment = self._signal([self._find(_TITLES[fault.kind])], fault)
        return moment

    def _disturb_receiver(self, fault: Fault) -> float:
        moment = time.time()
        if fault.action is Action.KILL:
            self.receiver.stop()
            self._later(2.0, self.receiver.start)
            return moment
        self.receiver.misbehave(delay_s=fault.stop_s)
        self._later(fault.stop_s, self.receiver.behave)
        return moment

    def _disturb_postgresql(self, fault: Fault) -> float:
        assert self._postgres is not None
        moment = self._signal(self._postgres.processes(), fault)
        if fault.action is Action.KILL:
            self._postgres.start()
        return moment

    def _signal(self, processes: list[psutil.Process], fault: Fault) -> float:
        moment = time.time()
        first, then = (signal.SIGKILL, None) if fault.action is Action.KILL else (signal.SIGSTOP, signal.SIGCONT)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(first)
        if then is not None:
            self._later(fault.stop_s, lambda: _send_all(processes, then))
        return moment

    def _later(self, after_s: float, what: Callable[[], object]) -> None:
        timer = threading.Timer(after_s, what)
        timer.start()
        self._timers.append(timer)

    def _find(self, title: str) -> psutil.Process:
        deadline = time.monotonic() + FIND_S
        while time.monotonic() < deadline:
            for process in processes_of(self._darkroom.instance):
                with suppress(psutil.Error):
                    if title in " ".join(process.cmdline()):
                        return process
            time.sleep(0.2)
        raise RuntimeError(f"There is no process {title} for {FIND_S:g} s: the service did not replace it.")

    def note_final_states(self) -> None:
        """Have the store itself note each time that it takes a final state."""
        with self._engine().begin() as db:
            for statement in _NOTING[db.dialect.name]:
                db.exec_driver_sql(statement)

    def final_states(self) -> list[tuple[str, str]]:
        """Return id and state for each time that a final state was written."""
        with self._engine().connect() as db:
            return [(str(job_id), str(state)) for job_id, state in db.exec_driver_sql("SELECT * FROM final_states")]

    def _engine(self) -> sa.Engine:
        url = self._postgres.url() if self._postgres else f"sqlite:///{self._home / 'data' / 'jobs.db'}"
        return sa.create_engine(url, poolclass=sa.NullPool)

    def http(self) -> httpx.Client:
        """Return a client that waits no longer than a person would."""
        return httpx.Client(base_url=self.url, timeout=40, trust_env=False)

    def files(self) -> Iterator[Path]:
        """Yield every stored picture."""
        return self.pictures.rglob("*.png")

    def calls_with_several_jobs(self) -> int:
        """Return how many such calls the model replicas have answered, by Serve's own account of them."""
        logs = self._home.glob("ray/session_2*/logs/serve/replica_*TextToImage*.log*")
        return sum(log.read_text(errors="replace").count("render_together OK") for log in logs)


_TABLE = "CREATE TABLE final_states (job_id text, state text)"
_NOTE = "INSERT INTO final_states VALUES (NEW.job_id, NEW.state);"
_TRIGGER = "CREATE TRIGGER note_final AFTER UPDATE OF state ON jobs FOR EACH ROW"
_IS_FINAL = "WHEN (NEW.state NOT IN ('queued', 'processing'))"
_NOTING = {
    "sqlite": (_TABLE, f"{_TRIGGER} {_IS_FINAL} BEGIN {_NOTE} END"),
    "postgresql": (
        _TABLE,
        f"CREATE FUNCTION note_final() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {_NOTE} RETURN NEW; END $$",
        f"{_TRIGGER} {_IS_FINAL} EXECUTE FUNCTION note_final()",
    ),
}


def _send_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
