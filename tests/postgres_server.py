"""A PostgreSQL server of the tests' own, from the binaries that Debian installs."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil
import sqlalchemy as sa

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


class PostgresMissingError(Exception):
    """The server's binaries are not on this machine."""


@dataclass
class PostgresServer:
    """A running server that listens on a socket in `folder` only."""

    folder: Path
    _run_start: Callable[[], None] = lambda: None
    _numbers: count = field(default_factory=count)  # type: ignore[type-arg]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://darkroom@/{database}?host={self.folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of an empty database that is dropped in the end."""
        name = f"darkroom_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes, the one that started the others first."""
        number = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        server = psutil.Process(number)
        return [server, *server.children(recursive=True)]

    def start(self) -> None:
        """Start the server again after it was killed."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return self._run_start()
            except RuntimeError:
                # What its last processes hold is free only when they are gone.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement outside of a transaction."""
        engine = sa.create_engine(self.url(database), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)


def binaries() -> Path:
    """Return the folder with `initdb` and `pg_ctl`. Raises `PostgresMissingError`."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    raise PostgresMissingError(
        "PostgreSQL's initdb and pg_ctl are not installed, neither on PATH nor in /usr/lib/postgresql. "
        "Install Debian's `postgresql` package to run these tests."
    )


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server in a temporary folder, and stop and remove it in the end. Raises `PostgresMissingError`.

    The server refuses to run as root, so root runs it as an unprivileged user.
    """
    tools = binaries()
    # Not pytest's temporary folder: the unprivileged user cannot enter it, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="darkroom-pg-"))
    try:
        user = _unprivileged_user()
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)

        def run(*command: str, timeout_s: float) -> None:
            ids = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            log = folder / "tests.log"
            try:
                with log.open("ab") as output:
                    subprocess.run(
                        command,
                        check=True,
                        cwd=folder,
                        env={"PATH": os.defpath, "LC_ALL": "C"},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        timeout=timeout_s,
                        **ids,  # type: ignore[arg-type]
                    )
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"{command[0]} failed: {log.read_text()[-2000:]}") from error

        data = str(folder / "data")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=on"
        initdb = ("--auth=trust", "--username=darkroom", "--encoding=UTF8", "--locale=C", "--no-sync")
        run(str(tools / "initdb"), "-D", data, *initdb, timeout_s=START_TIMEOUT_S)
        pg_ctl = (str(tools / "pg_ctl"), "-D", data, "-w")

        def start() -> None:
            run(*pg_ctl, "-t", str(START_TIMEOUT_S), "-o", options, "start", timeout_s=START_TIMEOUT_S + 5)

        start()
        try:
            yield PostgresServer(folder, start)
        finally:
            run(*pg_ctl, "-m", "immediate", "stop", timeout_s=STOP_TIMEOUT_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresMissingError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody.")
