"""The job tracker: the only one who changes a job's state.

Every command is decided by the store (compare-and-set in a transaction) and shown in memory after the commit, so that
memory never runs ahead of what would survive a crash. The class knows nothing of actors; `callback.actor` makes it one.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from callback import job_rows
from callback.board import Board
from callback.clock import Clock, SystemClock
from callback.committer import Apply, Committer, Work
from callback.config import TrackerConfig, code_fingerprint, code_version
from callback.courier import Courier
from callback.errors import Deposed, Refusal, StoreUnavailable, TrackerError, TrackerUnavailable, Unavailable
from callback.lifecycle import Lifecycle
from callback.metrics import TrackerMetrics
from callback.ownership import HEARTBEAT_S, Succession
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
    Remember,
    Renew,
    Submit,
    TrackerHealth,
    TrackerIdentity,
)
from callback.replays import Replays
from callback.retention import Retention
from callback.signing import Signer, obtain_private_key
from callback.states import JobState
from callback.store import Store
from observability.logs import get_logger

OWNED_FOR_S = 2.0
"""So long after a commit memory is believed: a tracker that was stopped meanwhile finds that more time has passed.
The courier commits every second."""
READERS = 4
MAX_READS = 256
"""Questions to the store at once: a store that stalls must not fill the actor's places with them."""
HEALTH_WAIT_S = 0.5
"""Whoever asks for health waits no longer for a store that stalls."""
LONG_PAUSE_S = 1.0
"""A tick that comes so much too late means that the process did not run."""

_log = get_logger("tracker")


class JobTracker:
    """One incarnation of the tracker. `start` takes the store over; from then on it answers until it is deposed.

    `holder` names the Darkroom: trackers of the same one succeed each other at once.
    """

    def __init__(
        self,
        config: TrackerConfig,
        pictures: PictureStore,
        *,
        holder: str = "one process",
        clock: Clock | None = None,
        on_deposed: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._pictures = pictures
        self._clock = clock or SystemClock()
        self._succession = Succession(holder, self._clock)
        self._on_deposed = on_deposed or (lambda: None)
        self._store = Store(config.store_url)
        self._metrics = TrackerMetrics()
        self._epoch = -1
        self._trouble: str | None = "The tracker has not opened its store yet."
        self._stale = False
        self._committed_at = float("-inf")
        self._retiring = False
        self._replays = Replays(self._clock)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._reads = 0
        self._common: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._committer: Committer
        self._board: Board
        self._signer: Signer
        self._courier: Courier
        self._lifecycle: Lifecycle
        self._retention: Retention

    # ---- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Own the store and recover the open jobs from it. Does nothing when it has done so already.

        Raises `SchemaTooNew` for a database of a newer Darkroom, `StoreInUse` while another one owns the store,
        `StoreUnavailable` when it cannot be opened, `TrackerUnavailable` once this tracker is being replaced.
        """
        if self._retiring:
            raise TrackerUnavailable("This tracker is being replaced.")
        if self._epoch < 0:
            await self._together("start", self._start)

    async def _together(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work` once for all who ask meanwhile, and give each its outcome."""
        task = self._common.get(name)
        if task is None:
            task = self._common[name] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda done: self._common.pop(name) and (done.cancelled() or done.exception()))
        await asyncio.shield(task)

    async def _start(self) -> None:
        if self._epoch >= 0:
            return
        await asyncio.to_thread(self._store.prepare, self._succession.check)
        epoch = await asyncio.to_thread(
            self._store.acquire, self._succession.holder, self._clock.now(), self._succession.check
        )
        self._committer = Committer(self._store, epoch)
        self._board = Board(epoch)
        now = self._clock.now()
        try:
            self._signer = Signer(await self._run(lambda tx: obtain_private_key(tx, now)))
        except BaseException:
            await self._committer.close()
            raise
        self._courier = Courier(
            self._config, self._pictures, self._run, self._board.publish, self._clock, signer=self._signer
        )
        self._lifecycle = Lifecycle(
            self._config, self._store, self._run, self._board, self._courier, self._clock, self._metrics
        )
        self._retention = Retention(
            self._config,
            self._pictures,
            self._read,
            self._run,
            self._board.finals.forget,
            self._clock,
            self._succession.last_seen_at,
        )
        try:
            await self._courier.take_over()
            await self._lifecycle.recover()
        except BaseException:
            await self._courier.close()
            await self._committer.close()
            raise
        self._epoch = epoch
        self._trouble, self._stale = None, False
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
        await asyncio.gather(*self._common.values(), return_exceptions=True)
        if self._epoch >= 0:
            await self._courier.drain()
            for task in tuple(self._background):
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            await self._courier.close()
            await self._committer.close()
            self._retention.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    async def _run(self, work: Work, apply: Apply | None = None) -> Any:
        """Commit `work`, keeping track of whether the store works and whether we still own it."""
        asked_at = self._clock.steady()
        try:
            done = await self._committer.run(work, apply)
        except Deposed:
            self._retiring = True
            _log.warning("another tracker owns the store; this one stops", extra={"epoch": self._epoch})
            self._on_deposed()
            raise
        except StoreUnavailable as error:
            # The commit may or may not have happened: memory is read anew before the next command.
            self._trouble, self._stale = str(error), True
            raise
        except Exception as error:
            # What was committed may not have reached memory.
            self._stale = self._stale or not isinstance(error, TrackerError)
            raise
        # The store was ours at some moment after the question.
        self._committed_at = max(self._committed_at, asked_at)
        return done

    async def _tick_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        ticked_at = beat_at = loop.time()
        while True:
            await asyncio.sleep(self._config.tick_s)
            deaf_s, ticked_at = loop.time() - ticked_at - self._config.tick_s, loop.time()
            try:
                await self._refresh_if_stale()
                if deaf_s > LONG_PAUSE_S:
                    # The process was stopped or starved: what its dispatchers have told waits to be heard.
                    _log.warning("the tracker was paused", extra={"seconds": round(deaf_s, 1)})
                    self._lifecycle.claims.extend_leases(deaf_s)
                await self._lifecycle.expire()
                if ticked_at - beat_at >= HEARTBEAT_S:
                    beat_at = ticked_at
                    await self._run(lambda tx: self._store.beat(tx, self._clock.now()))
                self._metrics.observe(self._board, self._clock.now())
            except Unavailable as error:
                _log.warning("tick failed", extra={"cause": str(error)})
            except Deposed:
                return
            except Exception:  # noqa: BLE001 - a bug in one tick must not stop leases and time limits for ever
                _log.exception("tick failed")

    async def _refresh_if_stale(self) -> None:
        # Also while it is being read anew: until then memory is not what the store holds.
        if self._stale or "refresh" in self._common:
            await self._together("refresh", self._refresh)

    async def _refresh(self) -> None:
        self._stale = False
        try:
            await self._lifecycle.recover()
        except BaseException:
            self._stale = True
            raise
        if not self._stale:
            self._trouble = None
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
            return await self._dispatch(command)
        except Refusal as refusal:
            return Rejected(refusal.code, str(refusal), retryable=False, retry_after_s=refusal.retry_after_s)
        except TrackerError as error:
            return Rejected(error.code, str(error), retryable=isinstance(error, Unavailable | Deposed))
        except Exception:  # noqa: BLE001 - a bug met by one command must not fail those that came with it
            _log.exception("command failed", extra={"command": type(command).__name__})
            return Rejected("internal_error", "The job tracker failed at this command; see its log.", retryable=False)

    def _dispatch(self, command: Command) -> Awaitable[Answer]:  # noqa: PLR0911 - one line a command
        lifecycle = self._lifecycle
        match command:
            case Submit():
                return lifecycle.submit(command.job)
            case ClaimJobs():
                return lifecycle.claims.claim(command)
            case Renew():
                return lifecycle.claims.renew(command)
            case Finish():
                return lifecycle.finish(command)
            case Release():
                return lifecycle.release(command)
            case Cancel():
                return lifecycle.cancel(command)
            case Redeliver():
                return lifecycle.redeliver(command)
            case Remember():
                return self._replays.remember(command)

    # ---- reading --------------------------------------------------------------------------------------------------

    async def changes(self, cursor: Cursor, wait_s: float) -> Changes:
        """Return what changed since `cursor`, waiting up to `wait_s` seconds; for one caller per ingress replica."""
        await self.start()
        return await self._board.changes(cursor, wait_s)

    async def get(self, owner: str, job_id: str) -> JobView | None:
        """Return the current job with the client's id, open or final, or None."""
        (view,) = await self.find(((owner, job_id),))
        return view

    async def find(self, identities: tuple[tuple[str, str], ...]) -> tuple[JobView | None, ...]:
        """Return the current job with each of these client's ids (owner, id), open or final, or None."""
        await self.start()
        # Who was stopped, or cannot reach the store, does not know whether a successor gave an id to another job.
        owned = not self._stale and self._clock.steady() < self._committed_at + OWNED_FOR_S
        known = {identity: self._board.known(*identity, finals=owned) for identity in identities}
        unknown = [identity for identity, view in known.items() if view is None]
        if unknown:
            rows = await self._read(lambda tx: [job_rows.by_client_id(tx, *identity) for identity in unknown])
            known |= dict(zip(unknown, rows, strict=True))
        return tuple(known[identity] for identity in identities)

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

        if self._reads >= MAX_READS:
            raise Unavailable(f"{MAX_READS} questions wait for the job store. Try again later.")
        self._reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        finally:
            self._reads -= 1

    async def health(self) -> TrackerHealth:
        """Return the tracker's own account of itself; never raises."""
        try:
            async with asyncio.timeout(HEALTH_WAIT_S):
                await self.start()
                await self._refresh_if_stale()
        except TimeoutError:
            pass  # The store is being tried: what was wrong with it the last time still is.
        except TrackerError as error:
            if self._epoch < 0 or not self._retiring:
                self._trouble = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, health says so
            _log.exception("the tracker cannot start")
            self._trouble = f"The tracker failed at its start ({type(error).__name__}); see its log."
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
            public_key=self._signer.public_key,
        )

    async def identity(self) -> TrackerIdentity:
        """Return which code and configuration this tracker runs; answers without the store."""
        return TrackerIdentity(
            protocol_version=PROTOCOL_VERSION,
            code_version=code_version(),
            code_fingerprint=code_fingerprint(),
            config_fingerprint=self._config.fingerprint(self._pictures.identity),
            epoch=self._epoch,
            pid=os.getpid(),
        )
