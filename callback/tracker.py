"""The job tracker: the only one who changes a job's state.

Every command is decided by the store (compare-and-set in a transaction) and shown in memory after the commit, so that
memory never runs ahead of what would survive a crash. The class knows nothing of actors; `callback.client` makes it one.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from callback import delivery_rows, job_rows
from callback.board import Board
from callback.clock import Clock, SystemClock
from callback.committer import Committer
from callback.config import TrackerConfig, code_fingerprint, code_version
from callback.courier import Courier
from callback.errors import Deposed, StoreUnavailable, TrackerError, Unavailable
from callback.lifecycle import Lifecycle
from callback.metrics import TrackerMetrics
from callback.records import (
    PROTOCOL_VERSION,
    Answer,
    Cancel,
    Changes,
    ClaimJobs,
    Command,
    Cursor,
    Finish,
    JobPage,
    JobView,
    PictureStore,
    Redeliver,
    Rejected,
    Release,
    Renew,
    Submit,
    TrackerHealth,
    TrackerIdentity,
)
from callback.retention import Retention
from callback.states import JobState
from callback.store import Store
from observability.logs import get_logger

_log = get_logger("tracker")


class JobTracker:
    """One incarnation of the tracker. `start` takes the store over; from then on it answers until it is deposed."""

    def __init__(
        self,
        config: TrackerConfig,
        pictures: PictureStore,
        *,
        clock: Clock | None = None,
        on_deposed: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._pictures = pictures
        self._clock = clock or SystemClock()
        self._on_deposed = on_deposed or (lambda: None)
        self._store = Store(config.store_url)
        self._metrics = TrackerMetrics()
        self._epoch = -1
        self._trouble: str | None = "The tracker has not opened its store yet."
        self._stale = False
        self._retiring = False
        self._started = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        self._committer: Committer
        self._board: Board
        self._courier: Courier
        self._lifecycle: Lifecycle
        self._retention: Retention

    # ---- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Own the store and recover the open jobs from it. Does nothing when it has done so already.

        Raises `SchemaTooNew` for a database of a newer Darkroom, `StoreUnavailable` when the store cannot be opened.
        """
        async with self._started:
            if self._epoch >= 0:
                return
            await asyncio.to_thread(self._store.prepare)
            holder = f"pid {os.getpid()}"
            epoch = await asyncio.to_thread(self._store.acquire, holder, self._clock.now())
            self._committer = Committer(self._store, epoch)
            self._board = Board(epoch)
            self._courier = Courier(self._config, self._pictures, self._run, self._board.publish, self._clock)
            self._lifecycle = Lifecycle(
                self._config, self._store, self._run, self._board, self._courier, self._clock, self._metrics
            )
            self._retention = Retention(self._config, self._pictures, self._run, self._clock)
            await self._run(lambda tx: delivery_rows.retry_unsettled(tx, self._clock.now()))
            await self._lifecycle.recover()
            self._epoch = epoch
            self._trouble = None
            self._spawn(self._tick_for_ever())
            self._spawn(self._courier.retry_for_ever())
            self._spawn(self._retention.run_for_ever())
            _log.info("tracker owns the store", extra={"epoch": epoch, "open_jobs": len(self._board)})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Stop the background work, let running deliveries settle, commit what waits and close the store."""
        self._retiring = True
        if self._epoch < 0:
            self._store.close()
            return
        await self._courier.drain()
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._courier.close()
        await self._committer.close()
        self._store.close()

    async def _run(self, work: Callable[[Any], Any]) -> Any:
        """Commit `work`, keeping track of whether the store works and whether we still own it."""
        try:
            result = await self._committer.run(work)
        except Deposed:
            self._retiring = True
            _log.warning("another tracker owns the store; this one stops", extra={"epoch": self._epoch})
            self._on_deposed()
            raise
        except StoreUnavailable as error:
            # The commit may or may not have happened: memory is read anew before the next command.
            self._trouble, self._stale = str(error), True
            raise
        return result

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._config.tick_s)
            try:
                await self._refresh_if_stale()
                await self._lifecycle.expire()
            except Unavailable as error:
                self._trouble = str(error)
            except Deposed:
                return
            except Exception:  # noqa: BLE001 - a bug in one tick must not stop leases and time limits for ever
                _log.exception("tick failed")
            self._metrics.observe(self._board, self._clock.now())

    async def _refresh_if_stale(self) -> None:
        if self._stale:
            async with self._started:
                if self._stale:
                    await self._lifecycle.recover()
                    self._stale, self._trouble = False, None
                    _log.info("store works again; open jobs read anew", extra={"open_jobs": len(self._board)})

    # ---- commands -------------------------------------------------------------------------------------------------

    async def execute(self, protocol_version: int, commands: tuple[Command, ...]) -> tuple[Answer, ...]:
        """Carry out the commands side by side, in common transactions; one answer each, in their order.

        A refused or failed command answers `Rejected` and leaves the others alone.
        """
        if protocol_version != PROTOCOL_VERSION:
            sentence = f"This tracker speaks protocol {PROTOCOL_VERSION}, the caller {protocol_version}."
            return tuple(Rejected("unavailable", sentence, retryable=True) for _ in commands)
        return tuple(await asyncio.gather(*(self._execute_one(command) for command in commands)))

    async def _execute_one(self, command: Command) -> Answer:
        if self._retiring:
            return Rejected("unavailable", "This tracker is being replaced.", retryable=True)
        try:
            await self.start()
            await self._refresh_if_stale()
            # Shielded: memory must follow the commit even if the caller goes away meanwhile.
            return await asyncio.shield(asyncio.ensure_future(self._dispatch(command)))
        except TrackerError as error:
            return Rejected(error.code, str(error), retryable=isinstance(error, Unavailable | Deposed))

    def _dispatch(self, command: Command) -> Awaitable[Answer]:  # noqa: PLR0911 - one line a command
        lifecycle = self._lifecycle
        match command:
            case Submit():
                return lifecycle.submit(command.job)
            case ClaimJobs():
                return lifecycle.claim(command)
            case Renew():
                return lifecycle.renew(command)
            case Finish():
                return lifecycle.finish(command)
            case Release():
                return lifecycle.release(command)
            case Cancel():
                return lifecycle.cancel(command)
            case Redeliver():
                return lifecycle.redeliver(command)

    # ---- reading --------------------------------------------------------------------------------------------------

    async def changes(self, cursor: Cursor, wait_s: float) -> Changes:
        """Return what changed since `cursor`, waiting up to `wait_s` seconds; for one caller per ingress replica."""
        await self.start()
        return await self._board.changes(cursor, wait_s)

    async def get(self, owner: str, job_id: str) -> JobView | None:
        """Return the current job with the client's id, open or final, or None."""
        await self.start()
        entry = self._board.find(owner, job_id)
        if entry is not None:
            return entry.view
        view: JobView | None = await self._read(lambda tx: job_rows.by_client_id(tx, owner, job_id))
        return view

    async def jobs(self, owner: str | None, states: tuple[JobState, ...], before: int | None, limit: int) -> JobPage:
        """Return a page of jobs, newest first. `before` is the `next_cursor` of the page before."""
        await self.start()
        views = await self._read(lambda tx: job_rows.page(tx, owner, states, before, limit + 1))
        # What memory knows of an open job (stage, step) is newer than its row.
        shown = tuple(entry.view if (entry := self._board.get(view.key)) else view for view in views[:limit])
        return JobPage(shown, shown[-1].seq if len(views) > limit else None)

    async def _read(self, query: Callable[[Any], Any]) -> Any:
        def read() -> Any:
            with self._store.reading() as tx:
                return query(tx)

        return await asyncio.to_thread(read)

    async def health(self) -> TrackerHealth:
        """Return the tracker's own account of itself; never raises."""
        try:
            await self.start()
            await self._refresh_if_stale()
        except TrackerError as error:
            self._trouble = str(error)
        if self._epoch < 0:
            return TrackerHealth(self._epoch, accepting=False, degraded=(str(self._trouble),), open_jobs=0)
        now = self._clock.now()
        queued = self._board.queued()
        heads = {model: head for model in queued if (head := self._board.head(model)) is not None}
        return TrackerHealth(
            epoch=self._epoch,
            accepting=self._trouble is None and not self._retiring,
            degraded=tuple(filter(None, (self._trouble, self._courier.trouble, self._retention.trouble))),
            open_jobs=len(self._board),
            queued=queued,
            head_age_s={model: max(0.0, now - entry.view.queued_at) for model, entry in heads.items()},
            pending_deliveries=self._courier.under_way,
        )

    async def identity(self) -> TrackerIdentity:
        """Return which code and configuration this tracker runs; answers without the store."""
        return TrackerIdentity(
            protocol_version=PROTOCOL_VERSION,
            code_version=code_version(),
            code_fingerprint=code_fingerprint(),
            config_fingerprint=self._config.fingerprint(),
            epoch=self._epoch,
            pid=os.getpid(),
        )
