"""The durable memory: one SQL database, one writing tracker at a time.

SQLite (WAL, full sync) is the embedded default; PostgreSQL serves clusters. `Store.transaction` is the only way to
write: it checks the owner epoch inside the transaction, so that a tracker which was stopped or replaced changes nothing
when it wakes (design invariant I3).
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from callback.config import check_store_url, is_local
from callback.errors import Deposed, SchemaTooNew, StoreUnavailable
from callback.ownership import NOBODY, Ownership
from callback.schema import tracker_owner

BUSY_TIMEOUT_S = 5.0
"""How long SQLite waits for another writer (a backup, a second tracker taking over) before the commit is refused."""
_SWITCH_AGAIN_S = 0.02

_POSTGRESQL_BOUNDS = {
    "connect_timeout": 5,
    # A server that is cut off is noticed within about 20 s, whatever the connection was doing.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
    # A tracker that was stopped within a transaction must not hold its locks against its successor for longer.
    "options": "-c statement_timeout=15000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=10000",
}
_MIGRATION_LOCK = 0x6461726B726F6F6D
"""PostgreSQL advisory lock (`darkroom` in ASCII): two trackers that start at once must not both create the tables."""

_OWNER = sa.select(tracker_owner.c.epoch).with_for_update()
_READ_OWNER = sa.select(tracker_owner.c.epoch, tracker_owner.c.holder, tracker_owner.c.taken_at)
_PRESENT_OWNER = _READ_OWNER.with_for_update()

Check = Callable[[Ownership], None]
"""Raises `StoreInUse` if a store must be left to this owner."""

_log = logging.getLogger("darkroom.store")


class Store:
    """A database of jobs. Build it with a SQLAlchemy URL; `prepare` brings it to the present schema.

    Raises `StoreUnusable` for a URL of another database, or of one in memory.
    """

    def __init__(self, url: str) -> None:
        check_store_url(url)
        self._url = sa.make_url(url)
        self._writer = self._engine(begin="BEGIN IMMEDIATE", pool_size=2)
        self._reader = self._engine(begin="BEGIN", pool_size=4)

    @property
    def is_local(self) -> bool:
        """Whether the data lies on this machine's disk."""
        return is_local(self._url)

    def _engine(self, *, begin: str, pool_size: int) -> sa.Engine:
        if not self.is_local:
            return sa.create_engine(
                self._url,
                pool_size=pool_size,
                max_overflow=0,
                pool_timeout=BUSY_TIMEOUT_S,
                pool_pre_ping=True,
                hide_parameters=True,
                connect_args=_POSTGRESQL_BOUNDS,
            )
        engine = sa.create_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT_S,
            # Errors would carry prompts and callback secrets into the log.
            hide_parameters=True,
            connect_args={"check_same_thread": False},
        )

        @sa.event.listens_for(engine, "connect")
        def _configure(connection: sqlite3.Connection, _record: object) -> None:
            # The driver's own transaction handling would begin deferred transactions that deadlock on upgrade.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
            _log_ahead(cursor)
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.close()

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def prepare(self, check: Check = lambda _: None) -> None:
        """Migrate the database to the present schema. `check` is shown its owner, and raises to leave it as it is.

        Raises `SchemaTooNew` if a newer Darkroom wrote it, `StoreUnavailable` if it cannot be reached or written.
        """
        with _unavailable_if_failing():
            self._create_file()
            script = ScriptDirectory.from_config(self._alembic())
            with self._reader.connect() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
            if found == script.get_current_head():
                return
            known = {revision.revision for revision in script.walk_revisions()}
            if found is not None and found not in known:
                raise SchemaTooNew(
                    f"The database has schema {found}, which this Darkroom does not know: it was written by a newer "
                    "version. Start that version, or restore a backup from before the upgrade."
                )
            with self._writer.begin() as connection:
                if not self.is_local:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
                if found is not None:
                    self._check_owner(connection, check)
                config = self._alembic()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        return config

    def _create_file(self) -> None:
        # Callback secrets lie in the rows: nobody but the service's user needs to read them. SQLite gives the files
        # that it puts beside this one the same permissions.
        if self.is_local and self._url.database:
            file = Path(self._url.database)
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)

    def acquire(self, holder: str, now: float, check: Check = lambda _: None) -> int:
        """Become the writing tracker: raise the epoch, which shuts every earlier tracker out. Returns the new epoch.

        `check` is shown the present owner, and raises to leave the store to it.
        """
        with self.reading() as tx:
            # Without a lock: whoever waits for its turn must not burden the owner.
            self._check_owner(tx, check, _READ_OWNER)
        with _unavailable_if_failing(), self._writer.begin() as tx:
            first = {"id": 1, "epoch": 0, "holder": holder, "taken_at": now}
            tx.execute(self.insert(tracker_owner).on_conflict_do_nothing(), first)
            self._check_owner(tx, check)
            raised = {"epoch": tracker_owner.c.epoch + 1, "holder": holder, "taken_at": now}
            taken = sa.update(tracker_owner).values(**raised).returning(tracker_owner.c.epoch)
            return int(tx.execute(taken).scalar_one())

    def release(self, epoch: int) -> None:
        """Give the store up, so that any tracker may have it at once. Raises as `transaction` does."""
        with self.transaction(epoch) as tx:
            tx.execute(sa.update(tracker_owner).values(holder=NOBODY))

    def _check_owner(self, tx: sa.Connection, check: Check, look: sa.Select[Any] = _PRESENT_OWNER) -> None:
        if (owner := tx.execute(look).one_or_none()) is not None:
            check(Ownership(*owner))

    @contextmanager
    def transaction(self, epoch: int) -> Iterator[sa.Connection]:
        """Open a writing transaction of the tracker that owns `epoch`; it commits at the end of the block.

        Raises `Deposed` if another tracker has taken over, `StoreUnavailable` if nothing could be committed.
        """
        with _unavailable_if_failing(), self._writer.begin() as tx:
            # The lock makes a successor's `acquire` wait until this transaction has ended, and us for our own last one,
            # if its connection broke while it was being committed (SQLite: BEGIN IMMEDIATE).
            if tx.execute(_OWNER).scalar_one_or_none() != epoch:
                raise Deposed("Another tracker owns the store now.")
            yield tx

    def beat(self, tx: sa.Connection, now: float) -> None:
        """Say that the owner is there. Its commit also shows whether the store takes writes."""
        tx.execute(sa.update(tracker_owner).values(taken_at=now))

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a consistent read-only view. Raises `StoreUnavailable`."""
        with _unavailable_if_failing(), self._reader.begin() as connection:
            yield connection

    def insert(self, table: sa.Table) -> Any:
        """Return an INSERT for this database that offers `on_conflict_do_nothing`."""
        if self.is_local:
            from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]  # noqa: PLC0415
        return insert(table)

    def close(self) -> None:
        """Close every connection."""
        self._writer.dispose()
        self._reader.dispose()


_OUR_MISTAKES = (
    sa.exc.DataError,
    sa.exc.IntegrityError,
    sa.exc.NotSupportedError,
    sa.exc.ProgrammingError,
)
"""What a database says of a statement and not of its own state. A damaged SQLite file is a plain `DatabaseError`."""


def _log_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch the database to a write-ahead log, which it keeps: only those that create it have to wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself here: two that hold a shared lock would wait for each other.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_SWITCH_AGAIN_S)
        else:
            return


@contextmanager
def _unavailable_if_failing() -> Iterator[None]:
    """Turn what the database reports of its own state into `StoreUnavailable`; our own mistakes pass through."""
    try:
        yield
    except (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        if isinstance(error, _OUR_MISTAKES):
            raise
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        # The driver's text may name hosts, users and paths: for the log, not for clients.
        _log.error("store failed", extra={"cause": cause})
        raise StoreUnavailable(
            f"The job store cannot be used at the moment ({_kind_of(cause)}). Try again later."
        ) from error
    except OSError as error:
        raise StoreUnavailable(f"The job store cannot be used at the moment ({error.strerror}).") from error


_KINDS = {
    "full": "its disk is full",
    "readonly": "its disk is read-only",
    "read-only": "its disk is read-only",
    "locked": "another process holds its lock",
    "lock timeout": "another process holds its lock",
    "malformed": "its file is damaged",
    "not a database": "its file is damaged",
    "i/o error": "its disk fails",
    "connection": "its server does not answer",
    "timeout": "it is too slow",
}


def _kind_of(cause: str) -> str:
    """Return what is wrong in words of ours."""
    lower = cause.lower()
    return next((words for sign, words in _KINDS.items() if sign in lower), "the log says why")
