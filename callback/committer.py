"""Group commit: many callers, one transaction, one disk sync.

Work that arrives while a transaction is being committed waits and goes into the next one together. A caller gets its
result only after its transaction is durable.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from callback.errors import Deposed, Unavailable
from callback.store import Store

MAX_GROUP = 256
"""Most units of work in one transaction: bounds how long the first of them waits for the last."""
MAX_WAITING = 4096
"""Most units that may wait for their turn; beyond that the store is too slow and callers are told so."""

T = TypeVar("T")


@dataclass(slots=True)
class _Unit:
    work: Callable[[sa.Connection], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Committer:
    """One writing thread in front of the store, for one owner epoch."""

    def __init__(self, store: Store, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.Queue[_Unit | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction and return its result once that is committed.

        `work` may be run twice (again alone, if another unit of its group failed), so it must touch nothing but the
        connection. Raises what `work` raises, `StoreUnavailable`, or `Deposed`.
        """
        unit = _Unit(work, self._loop.create_future())
        try:
            self._waiting.put_nowait(unit)
        except queue.Full:
            raise Unavailable(f"{MAX_WAITING} changes wait for the job store. Try again later.") from None
        # A caller that goes away must not take the group's other results with it.
        unit.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        result: T = await asyncio.shield(unit.future)
        return result

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
            self._loop.call_soon_threadsafe(_resolve, group)
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
                unit.result = unit.work(tx)

    async def close(self) -> None:
        """Commit what waits, then stop the thread."""
        await asyncio.to_thread(self._waiting.put, None)
        await asyncio.to_thread(self._thread.join)


def _resolve(group: list[_Unit]) -> None:
    for unit in group:
        if unit.future.cancelled():
            continue
        if unit.error is not None:
            unit.future.set_exception(unit.error)
        else:
            unit.future.set_result(unit.result)
