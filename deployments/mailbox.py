"""Carries jobs' events from an engine's threads to one asynchronous reader, in as few messages as their users allow."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from deployments.errors import EngineUnhealthy
from deployments.render import RenderEvent, RenderFinished, RenderProgress, RenderStarted

PROGRESS_INTERVAL_S = 1.0
"""Least time between a message and another one that only tells progress: each is a message through Ray, and the ingress
tells the tracker once a second."""

QUICK_S = 0.05
"""What quick jobs have to tell waits so long, if the caller agrees, for their ends: a picture that is stored by then
needs nothing before it, and several are told together."""

Batch = tuple[tuple[int, RenderEvent], ...]
"""Events with the numbers of their jobs; those of one job are in their order."""


class Mailbox:
    """The events of one call's jobs, which are numbered from 0. Read it once, with `async for`.

    Yields batches until every job has ended: of a job's progress only the newest, and, if the jobs are `quick`, of one
    that has its picture only that. Raises EngineUnhealthy after the batch that came with it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, jobs: int = 1, quick: bool = False) -> None:
        self._loop = loop
        self._quick = quick
        self._arrived = asyncio.Event()
        self._end_arrived = asyncio.Event()
        self._all_ended = asyncio.Event()
        # What follows is the threads' and the reader's, under the lock.
        self._lock = threading.Lock()
        self._events: dict[int, list[RenderEvent | EngineUnhealthy]] = {}
        self._started_at: dict[int, float] = {}
        self._running = jobs
        self._ends = 0

    def put_from_thread(self, number: int, event: RenderEvent | EngineUnhealthy) -> None:
        """Take the next event of a job; the last one is RenderFinished, RenderFailed or EngineUnhealthy."""
        end = not isinstance(event, RenderStarted | RenderProgress)
        with self._lock:
            if isinstance(event, RenderStarted):
                self._started_at[number] = time.monotonic()
            first = not self._events
            events = self._events.setdefault(number, [])
            # Nobody needs to know how far it was before what follows.
            if events and isinstance(events[-1], RenderProgress):
                events.pop()
            events.append(event)
            self._running -= end
            self._ends += end
            # The reader looks for all there is: a job may have hundreds of steps, and need not wake it for each.
            wakes = first or (end and (self._ends == 1 or self._running == 0))
            all_ended = self._running == 0
        if wakes:
            self._loop.call_soon_threadsafe(self._notice, end, all_ended)

    def _notice(self, end: bool, all_ended: bool) -> None:
        self._arrived.set()
        if end:
            self._end_arrived.set()
        if all_ended:
            self._all_ended.set()

    def _take(self) -> tuple[Batch, EngineUnhealthy | None]:
        with self._lock:
            taken, self._events = self._events, {}
            self._ends = 0
            for number, events in taken.items():
                if len(events) > 1 and isinstance(events[-1], RenderProgress):
                    # It waits for what is newer.
                    self._events[number] = [events.pop()]
            self._end_arrived.clear()
            if not self._events:
                self._arrived.clear()
        if self._quick:
            for events in taken.values():
                if isinstance(events[-1], RenderFinished):
                    del events[:-1]
        told: list[tuple[int, RenderEvent]] = []
        lost = None
        for number, events in taken.items():
            for event in events:
                if isinstance(event, EngineUnhealthy):
                    lost = event
                else:
                    told.append((number, self._timed(number, event)))
        return tuple(told), lost

    def _timed(self, number: int, event: RenderEvent) -> RenderEvent:
        started_at = self._started_at.get(number)
        if started_at is None or not isinstance(event, RenderFinished):
            return event
        # Now, because it may have waited here.
        return replace(event, since_start_s=time.monotonic() - started_at)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        while True:
            await self._arrived.wait()
            if self._quick:
                await _wait(self._all_ended, QUICK_S)
            last = self._all_ended.is_set()
            batch, lost = self._take()
            if batch:
                yield batch
            if lost is not None:
                raise lost
            if last:
                return
            await _wait(self._end_arrived, PROGRESS_INTERVAL_S)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    if not event.is_set():
        # Not `wait_for`: on Python 3.11 it can swallow the cancellation of the request.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
