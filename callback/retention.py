"""Retention: final jobs are forgotten after a time, and the oldest pictures go when they take too much room."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from callback import job_rows
from callback.clock import Clock
from callback.committer import Run
from callback.config import TrackerConfig
from callback.errors import Deposed
from callback.records import JobView, PictureStore, artifact_key
from observability.logs import get_logger

BATCH = 200
"""Jobs a transaction: keeps the store free for submits in between."""

Read = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]

_log = get_logger("retention")


class Retention:
    """Removes records and pictures in small batches, in the background. Jobs with an undelivered callback stay.

    `read` queries beside the writer, `run` commits a unit of work.
    """

    def __init__(self, config: TrackerConfig, pictures: PictureStore, read: Read, run: Run, clock: Clock) -> None:
        self._config = config
        self._pictures = pictures
        self._read = read
        self._run = run
        self._clock = clock
        self.trouble: str | None = None

    async def run_for_ever(self) -> None:
        """Sweep now and then."""
        while True:
            await asyncio.sleep(self._config.retention_interval_s)
            try:
                await self.sweep()
                self.trouble = None
            except Deposed:
                return
            except Exception as error:  # noqa: BLE001 - whatever the picture store raises must not end retention for ever
                self.trouble = f"Old jobs and pictures cannot be removed: {error}"
                _log.exception("sweep failed")

    async def sweep(self) -> None:
        """Remove everything that is due."""
        while await self._forget_old():
            pass
        while await self._shrink():
            pass

    async def _forget_old(self) -> bool:
        moment = self._clock.now() - self._config.retention_s
        old: list[JobView] = await self._read(lambda tx: job_rows.finished_before(tx, moment, BATCH))
        if old:
            # Pictures first: a record without a picture can be explained, a picture without a record is lost space.
            await asyncio.to_thread(self._delete_pictures, old)
            await self._run(lambda tx: job_rows.delete(tx, [view.key for view in old]))
            _log.info("old jobs forgotten", extra={"count": len(old)})
        return len(old) == BATCH

    async def _shrink(self) -> bool:
        def over(tx: sa.Connection) -> tuple[int, list[JobView]]:
            excess = job_rows.pictures_bytes(tx) - self._config.retention_bytes
            return excess, job_rows.oldest_pictures(tx, BATCH) if excess > 0 else []

        excess, oldest = await self._read(over)
        going = []
        for view in oldest:
            if excess <= 0:
                break
            going.append(view)
            excess -= view.picture.size_bytes if view.picture else 0
        if going:
            await asyncio.to_thread(self._delete_pictures, going)
            now = self._clock.now()
            await self._run(lambda tx: job_rows.picture_deleted(tx, [view.key for view in going], now))
            _log.info("oldest pictures removed", extra={"count": len(going)})
        return bool(going) and excess > 0

    def _delete_pictures(self, views: list[JobView]) -> None:
        for view in views:
            if view.picture is not None:
                self._pictures.delete(view.picture.key)
            # A lost attempt may have published too; its picture was never shown, and goes with the job.
            for attempt in range(1, view.attempt + 1):
                self._pictures.delete(artifact_key(view.key, attempt))
