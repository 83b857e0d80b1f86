"""Group commit: many callers, one transaction, one disk sync.

Work that arrives while a transaction is being committed waits and goes into the next one together. A caller gets its
result only after its transaction is durable.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from callback.errors import Deposed, Refusal, Unavailable
from callback.store import Store

MAX_GROUP = 256
"""Most units of work in one transaction: bounds how long the first of them waits for the last."""
MAX_WAITING = 4096
"""Most units that may wait for their turn; beyond that the store is too slow and callers are told so."""

Work = Callable[[sa.Connection], Any]
Apply = Callable[[Any], Any]


class Run(Protocol):
    """Commits a unit of work (see `Committer.run`)."""

    def __call__(self, work: Work, apply: Apply | None = None) -> Awaitable[Any]:
        """Return what `apply` makes of the result of `work`, or that result."""
        ...


@dataclass(slots=True)
class _Unit:
    work: Work
    apply: Apply | None
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def attempt(self, tx: sa.Connection) -> None:
        """Do the work. A refusal is a result like any other: the group is not undone for it."""
        self.error = None
        try:
            self.result = self.work(tx)
        except Refusal as refusal:
            self.error = refusal

    def resolve(self) -> None:
        """Apply the result, also for a caller that has gone away, and hand it over."""
        if self.error is None and self.apply is not None:
            try:
                self.result = self.apply(self.result)
            except Exception as error:  # noqa: BLE001 - it is the caller's, and must not fail its neighbours
                self.error = error
        if self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Committer:
    """One writing thread in front of the store, for one owner epoch."""

    def __init__(self, store: Store, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.Queue[_Unit | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    async def run(self, work: Work, apply: Apply | None = None) -> Any:
        """Run `work` in a transaction and return its result once that is committed.

        `work` may be run twice (again alone, if another unit of its group failed), so it must touch nothing but the
        connection, and it must not have written when it raises a `Refusal`. `apply` is called on the event loop with
        the result, in the order of the commits and even if the caller has gone away: what memory shows follows the
        store. Raises what `work` and `apply` raise, `StoreUnavailable`, or `Deposed`.
        """
        if self._closed:
            raise Unavailable("The job store is being closed.")
        unit = _Unit(work, apply, self._loop.create_future())
        try:
            self._waiting.put_nowait(unit)
        except queue.Full:
            raise Unavailable(f"{MAX_WAITING} changes wait for the job store. Try again later.") from None
        # An error that nobody waits for any more is no news.
        unit.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        return await unit.future

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, stopping = [first], False
            while len(group) < MAX_GROUP:
                try:
                    unit = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if unit is None:
                    stopping = True
                    break
                group.append(unit)
            self._commit(group)
            try:
                self._loop.call_soon_threadsafe(_resolve, group)
            except RuntimeError:
                return  # The loop was closed: nobody is left to be told.
            if stopping:
                return

    def _commit(self, group: list[_Unit]) -> None:
        try:
            self._transact(group)
        except (Unavailable, Deposed) as error:
            for unit in group:
                unit.error = error
        except Exception as error:  # noqa: BLE001 - whatever one unit raised must not fail its neighbours
            if len(group) == 1:
                group[0].error = error
                return
            for unit in group:
                self._commit([unit])

    def _transact(self, group: list[_Unit]) -> None:
        with self._store.transaction(self._epoch) as tx:
            for unit in group:
                unit.attempt(tx)

    async def close(self) -> None:
        """Commit what waits, then stop the thread. Later work is refused."""
        self._closed = True
        await asyncio.to_thread(self._waiting.put, None)
        await asyncio.to_thread(self._thread.join)


def _resolve(group: list[_Unit]) -> None:
    for unit in group:
        unit.resolve()
