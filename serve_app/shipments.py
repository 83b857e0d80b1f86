"""Quick jobs on their way to replicas, several in a call: a call through Ray Serve costs more than such a job does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.render import RenderEvent, RenderFailed, RenderFinished, RenderRequest
from observability.logs import get_logger

STOP_AGAIN_S = 1.0
"""A shipment may not be at its replica yet when one of its jobs is to stop: it is told until the job has ended."""
STOP_TOLD_S = 5.0
"""A replica that has not taken the news by then is left alone."""

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
        self._on_their_way: set[asyncio.Task[None]] = set()

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
        calls = min(len(jobs), max(self._devices(), -(-len(jobs) // max(1, self._together()))))
        for n in range(calls):
            task = asyncio.create_task(Shipment(self._handle, jobs[n::calls]).carry())
            self._on_their_way.add(task)
            task.add_done_callback(self._on_their_way.discard)

    async def close(self) -> None:
        """Follow no call any more, and cancel those that have not ended."""
        for task in (left := tuple(self._on_their_way)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Shipment:
    """Several jobs in one call."""

    def __init__(self, handle: DeploymentHandle, jobs: Sequence[ShippedJob]) -> None:
        self._handle = handle
        self._jobs = jobs
        self._response: Any = None
        self._stopping: asyncio.Task[None] | None = None
        for job in jobs:
            job.shipment = self

    async def carry(self) -> None:
        """Send them, and hand each its events, to the last one."""
        error: Exception | None = None
        try:
            self._response = self._handle.render_together.remote(tuple(job.request for job in self._jobs))
            async for batch in self._response:
                for number, event in batch:
                    self._jobs[number].tell(event)
        except Exception as caught:  # noqa: BLE001 - each job's attempt decides what it means
            error = caught
        finally:
            for job in self._jobs:
                job.give_up(error)
            # Ending the iteration does not end the replica's work.
            self._cancel()

    def stop_some(self) -> None:
        """Have those of the jobs stopped that say so, soon."""
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.create_task(self._stop_some())

    async def _stop_some(self) -> None:
        while stopped := [job for job in self._jobs if job.stopped and not job.over]:
            if all(job.stopped or job.over for job in self._jobs):
                self._cancel()
            else:
                await self._stop(tuple(job.request.artifact_key for job in stopped))
            await asyncio.sleep(STOP_AGAIN_S)

    async def _stop(self, artifact_keys: tuple[str, ...]) -> None:
        # Which replica has them only Serve knows.
        try:
            told = self._handle.broadcast("cancel_together", artifact_keys)
            await told.results_async(timeout_s=STOP_TOLD_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            _log.warning("a job could not be stopped yet", extra={"cause": type(error).__name__})

    def _cancel(self) -> None:
        if self._response is not None:
            # A response that could never be routed raises here what its iteration raises as well.
            with contextlib.suppress(RayError, RayServeException, asyncio.CancelledError):
                self._response.cancel()
