"""Retention: final jobs are forgotten after a time, and the oldest pictures go when they take too much room."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from callback import job_rows
from callback.clock import Clock, LeapWatch
from callback.committer import Run
from callback.config import TrackerConfig
from callback.errors import Deposed
from callback.records import JobView, PictureStore, artifact_key, earlier_artifact_key
from observability.logs import get_logger

BATCH = 200
"""Jobs a transaction: keeps the store free for submits in between."""

MAX_UNDELETED = 1000
"""So many pictures that cannot be deleted mean that their store as a whole does not work: no more are tried then."""

SHORTEST_RETENTION_S = 60.0
"""A command that is sent again after a lost answer must still find the job that it made."""

LEFTOVERS_EVERY_S = 3600.0
"""How often, and from which age on, half written pictures of writers that died are removed: it lists every folder."""

STEP_TIMEOUT_S = 600.0
"""A picture store that hangs for so long is told in `trouble`."""

T = TypeVar("T")
Read = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]

_log = get_logger("retention")


@dataclass(frozen=True, slots=True)
class _Undeleted:
    """A job whose pictures are marked as gone and could not be deleted. `cause`: the kind of the error."""

    view: JobView
    cause: str


class Retention:
    """Removes records and pictures in small batches, in the background. Jobs with an undelivered callback stay.

    Pictures are marked as gone before they go: the transaction proves that this tracker still owns the store, and no
    redelivery can be begun between its two halves. `read` queries beside the writer, `run` commits a unit of work,
    `forget` is told which jobs have changed by it. `last_known` is when the tracker before this one was last there.
    """

    def __init__(
        self,
        config: TrackerConfig,
        pictures: PictureStore,
        read: Read,
        run: Run,
        forget: Callable[[list[str]], None],
        clock: Clock,
        last_known: float | None = None,
    ) -> None:
        self._config = config
        self._pictures = pictures
        self._read = read
        self._run = run
        self._forget = forget
        self._clock = clock
        self._undeleted: dict[str, _Undeleted] = {}
        # One thread of its own: a picture store that hangs takes no other, and is asked one thing at a time.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="retention")
        self._leftovers_at = clock.steady()
        self._leaps = LeapWatch(clock, last_known)
        self.trouble: str | None = None

    async def run_for_ever(self) -> None:
        """Sweep now and then."""
        while True:
            await asyncio.sleep(self._config.retention_interval_s)
            try:
                await self.sweep()
            except Deposed:
                return
            except Exception as error:  # noqa: BLE001 - whatever is raised must not end retention for ever
                # Health is public: what the error says may name hosts and paths. The log has it.
                self.trouble = f"Old jobs and pictures cannot be removed ({type(error).__name__})."
                _log.exception("sweep failed")

    async def sweep(self) -> None:
        """Remove everything that is due. What cannot be deleted is left for the next sweep, and told in `trouble`."""
        if self._undeleted:
            await self._remove_pictures([left.view for left in self._undeleted.values()])
        leapt = self._leaps.has_leapt()
        for step in (self._shrink,) if leapt else (self._forget_old, self._shrink):
            while len(self._undeleted) < MAX_UNDELETED and await step():
                pass
        if not leapt:
            await self._remove_leftovers()
        self.trouble = None
        if self._leaps.is_seen:
            self.trouble = (
                "The machine's clock was set ahead. Old jobs are kept until it has said the same for an hour."
            )
        if self._undeleted:
            causes = ", ".join(sorted({left.cause for left in self._undeleted.values()}))
            self.trouble = f"Pictures of {len(self._undeleted)} jobs cannot be deleted ({causes})."

    async def _forget_old(self) -> bool:
        moment = self._clock.now() - max(self._config.retention_s, SHORTEST_RETENTION_S)
        undeleted = tuple(self._undeleted)
        find = partial(job_rows.finished_before, moment=moment, limit=BATCH, but=undeleted)
        old: list[JobView] = await self._read(find)
        if not old:
            return False
        # Pictures first: a record without a picture can be explained, a picture without a record is lost space.
        keys = await self._remove_pictures(old)

        def delete(tx: sa.Connection) -> list[str]:
            settled = job_rows.still_settled(tx, keys)
            job_rows.delete(tx, settled)
            return settled

        await self._run(delete, self._forget)
        _log.info("old jobs forgotten", extra={"count": len(keys)})
        return len(old) == BATCH

    async def _shrink(self) -> bool:
        def over(tx: sa.Connection) -> tuple[int, list[JobView]]:
            excess = job_rows.pictures_bytes(tx) - self._config.retention_bytes
            return excess, job_rows.oldest_pictures(tx, BATCH) if excess > 0 else []

        excess: int
        excess, oldest = await self._read(over)
        going = []
        for view in oldest:
            if excess <= 0:
                break
            going.append(view)
            excess -= view.picture.size_bytes if view.picture else 0
        if not going:
            return False
        keys = await self._remove_pictures(going)
        _log.info("oldest pictures removed", extra={"count": len(keys)})
        return excess > 0

    async def _remove_pictures(self, views: list[JobView]) -> list[str]:
        """Mark the pictures of those jobs that are still settled as gone, then delete them.

        Returns the keys of the jobs that have none any more; remembers those whose pictures cannot be deleted.
        """
        now = self._clock.now()

        def mark(tx: sa.Connection) -> list[str]:
            keys = job_rows.still_settled(tx, [view.key for view in views])
            job_rows.picture_deleted(tx, keys, now)
            return keys

        def show(keys: list[str]) -> set[str]:
            self._forget(keys)
            return set(keys)

        marked: set[str] = await self._run(mark, show)
        undeleted = await self._aside(partial(self._delete_pictures, [view for view in views if view.key in marked]))
        for view in views:
            self._undeleted.pop(view.key, None)
        self._undeleted |= {left.view.key: left for left in undeleted}
        return [key for key in marked if key not in self._undeleted]

    async def _remove_leftovers(self) -> None:
        if self._clock.steady() < self._leftovers_at:
            return
        removed = await self._aside(partial(self._pictures.remove_leftovers, LEFTOVERS_EVERY_S))
        self._leftovers_at = self._clock.steady() + LEFTOVERS_EVERY_S
        if removed:
            _log.info("half written pictures removed", extra={"count": removed})

    async def _aside(self, work: Callable[[], T]) -> T:
        """Do blocking work of the picture store on the thread for it. Raises TimeoutError."""
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def close(self) -> None:
        """Wait for nothing: what hangs may hang on."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _delete_pictures(self, views: list[JobView]) -> list[_Undeleted]:
        undeleted = []
        for view in views:
            try:
                self._delete_pictures_of(view)
            except Exception as error:  # noqa: BLE001 - one that cannot be deleted must not keep the others
                _log.warning("picture not deleted", extra={"job_id": view.job_id, "key": view.key}, exc_info=error)
                undeleted.append(_Undeleted(view, type(error).__name__))
        return undeleted

    def _delete_pictures_of(self, view: JobView) -> None:
        shown = view.picture.key if view.picture is not None else None
        if shown is not None:
            self._pictures.delete(shown)
        # A lost attempt may have published too; its picture was never shown, and goes with the job.
        for attempt in range(1, view.attempt + 1):
            for name in (artifact_key, earlier_artifact_key):
                if (key := name(view.key, attempt)) != shown:
                    self._pictures.delete(key)
