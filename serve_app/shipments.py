"""Quick jobs on their way to replicas, several in a call: a call through Ray Serve costs more than such a job does."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from deployments.mailbox import Batch
from deployments.render import RenderEvent, RenderFailed, RenderFinished, RenderRequest
from observability.logs import get_logger
from serve_app.supervision import wait_for_event

STOP_AGAIN_S = 1.0
"""A shipment may not be at its replica yet when one of its jobs is to stop: it is told until the job has ended."""
STOP_TOLD_S = 1.0
"""A replica that has not taken the news by then is not waited for."""
REST_S = 60.0
"""So long jobs are sent singly after Serve refused a call with several: a replica of an earlier release takes none."""

_SAYS_NOTHING_OF_SEVERAL = (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
"""Refusals that single jobs would meet as well."""

_log = get_logger("shipments")


class ShippedJob:
    """One job of a shipment; what a call with this job alone would return: an iterator of its events, and `cancel`."""

    def __init__(self, request: RenderRequest) -> None:
        self.request = request
        self.over = False
        self.stopped = False
        self.shipment: Shipment | None = None
        self._events: asyncio.Queue[RenderEvent | Exception | None] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[RenderEvent]:
        return self

    async def __anext__(self) -> RenderEvent:
        event = await self._events.get()
        if event is None:
            raise StopAsyncIteration
        if isinstance(event, Exception):
            raise event
        return event

    def cancel(self) -> None:
        """Stop it at its next denoising step; too late, it does nothing."""
        if self.over or self.stopped:
            return
        self.stopped = True
        if self.shipment is not None:
            self.shipment.stop_some()
        else:
            self.tell(RenderFailed("cancelled", "The job was cancelled."))

    def tell(self, event: RenderEvent) -> None:
        """Hand on what the replica told."""
        if not self.over:
            self._events.put_nowait(event)
            if isinstance(event, RenderFinished | RenderFailed):
                self.give_up(None)

    def give_up(self, error: Exception | None) -> None:
        """Say that no more will be told: because of `error`, or because the call has ended."""
        if not self.over:
            self.over = True
            self._events.put_nowait(error)


class Shipments:
    """Sends what it is given within one turn of the event loop, in calls of at most `together()` jobs.

    They are spread evenly: with `devices()` free replicas none is left without while another gets two.
    """

    def __init__(self, handle: DeploymentHandle, *, devices: Callable[[], int], together: Callable[[], int]) -> None:
        self._handle = handle
        self._devices = devices
        self._together = together
        self._gathered: list[ShippedJob] = []
        self._rests_until = 0.0
        self._on_their_way: dict[asyncio.Task[None], Sequence[ShippedJob]] = {}

    def send(self, request: RenderRequest) -> ShippedJob:
        """Send a job with the others of this moment."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._ship)
        job = ShippedJob(request)
        self._gathered.append(job)
        return job

    def _ship(self) -> None:
        jobs = [job for job in self._gathered if not job.over]
        self._gathered.clear()
        together = 1 if time.monotonic() < self._rests_until else self._together()
        calls = min(len(jobs), max(self._devices(), -(-len(jobs) // together)))
        for n in range(calls):
            task = asyncio.create_task(self._carry(jobs[n::calls]))
            self._on_their_way[task] = jobs[n::calls]
            task.add_done_callback(self._on_their_way.pop)

    async def _carry(self, jobs: Sequence[ShippedJob]) -> None:
        jobs = [job for job in jobs if not job.over]
        if len(jobs) > 1 and not await Shipment(self._handle, jobs).carry():
            self._rests_until = time.monotonic() + REST_S
            _log.info("jobs are sent singly for a while")
        singly = (Shipment(self._handle, [job]).carry() for job in jobs if not job.over)
        # What Ray ends one with must not leave the others without a follower.
        await asyncio.gather(*singly, return_exceptions=True)

    async def close(self) -> None:
        """Follow no call any more, and cancel those that have not ended."""
        left = dict(self._on_their_way)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        # A task that had not begun yet has told nobody.
        for job in itertools.chain.from_iterable(left.values()):
            job.give_up(_given_up())


class Shipment:
    """The jobs of one call."""

    def __init__(self, handle: DeploymentHandle, jobs: Sequence[ShippedJob]) -> None:
        self._handle = handle
        self._jobs = jobs
        self._response: Any = None
        self._stop = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        for job in jobs:
            job.shipment = self

    async def carry(self) -> bool:
        """Send them, and hand each its events, to the last one.

        False if nothing came of it because Serve refused a call with several jobs: then they can be sent again.
        """
        error: Exception | None = _given_up()
        told = False
        try:
            async for batch in self._call():
                told = True
                for number, event in batch:
                    self._jobs[number].tell(event)
            error = None
        except Exception as caught:  # noqa: BLE001 - each job's attempt decides what it means
            error = caught
        finally:
            refused = isinstance(error, RayServeException) and not isinstance(error, _SAYS_NOTHING_OF_SEVERAL)
            again = refused and not told and len(self._jobs) > 1
            for job in self._jobs:
                if not again or job.stopped:
                    job.give_up(error)
            # Ending the iteration does not end the replica's work.
            self._cancel()
        return not again

    async def _call(self) -> AsyncIterator[Batch]:
        if all(job.stopped for job in self._jobs):
            raise _given_up()
        if len(self._jobs) > 1:
            self._response = self._handle.render_together.remote(tuple(job.request for job in self._jobs))
            async for batch in self._response:
                yield batch
        else:
            self._response = self._handle.render.remote(self._jobs[0].request)
            async for event in self._response:
                yield ((0, event),)

    def stop_some(self) -> None:
        """Have those of the jobs stopped that say so, soon."""
        self._stop.set()
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.create_task(self._stop_some())

    async def _stop_some(self) -> None:
        while stopped := [job for job in self._jobs if job.stopped and not job.over]:
            self._stop.clear()
            if all(job.stopped or job.over for job in self._jobs):
                self._cancel()
            else:
                await self._tell_replicas(tuple(job.request.artifact_key for job in stopped))
            await wait_for_event(self._stop, STOP_AGAIN_S)

    async def _tell_replicas(self, artifact_keys: tuple[str, ...]) -> None:
        # Which of them has the jobs only Serve knows.
        try:
            told = self._handle.broadcast("cancel_together", artifact_keys)
            await told.results_async(timeout_s=STOP_TOLD_S, return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - whatever keeps the news from arriving, they are told again
            _log.warning("a job could not be stopped yet", extra={"cause": type(error).__name__})

    def _cancel(self) -> None:
        if self._response is not None:
            # A response that could never be routed raises here what its iteration raises as well.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                self._response.cancel()


def _given_up() -> RequestCancelledError:
    return RequestCancelledError("The call was given up.")
