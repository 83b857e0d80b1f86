"""The engine: one device, one job on it at a time, and the tail of a job beside the next job's denoising.

Three kinds of threads. The device thread owns the renderer: it loads the model and does all device work. Tail threads
wait for the device's copy, encode the PNG and publish it. The watchdog looks whether jobs still move. No Ray here.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from deployments.artifacts import ArtifactStore
from deployments.errors import (
    ArtifactUnwritable,
    EngineBusy,
    EngineUnhealthy,
    ModelUnusable,
    RenderBroken,
    RenderCancelled,
    RenderingError,
)
from deployments.job import EventSink, RenderJob
from deployments.render import RenderRequest
from observability.logs import get_logger, job_context

_log = get_logger("engine")

_TAIL_BACKLOG = 2  # pictures on their way to the store; more would only pile up memory behind a slow disk
_WATCH_INTERVAL_S = 1.0
_LOST_CLOSE_S = 0.5
STORE_TIMEOUT_S = 600.0
"""A store that takes a picture for longer than this hangs, and the thread that waits for it, too. Clients of object
stores give up by themselves before, after some six minutes of retries."""
NEWS_S = 0.25
"""Events of this long ago have left the process, whatever becomes of it."""


class Picture(Protocol):
    """A picture that may still be on its way from the device. Used by one tail thread."""

    def wait(self) -> None:
        """Block until the device has finished with the pixels and they lie in host memory."""

    def png(self) -> bytes:
        """Return the encoded picture. Raises RenderBroken if the pixels are no picture."""


class Renderer(Protocol):
    """What an engine drives. All calls come from the device thread."""

    @property
    def device(self) -> str:
        """Name of the device, such as `cpu` or `cuda:0 NVIDIA H100`; valid after `load`."""

    def load(self) -> None:
        """Bring the model to the device and show that it renders. Raises ModelUnusable or what the library raises."""

    def render(self, job: RenderJob) -> Picture:
        """Do the device work of `job`, reporting stages and steps to it; leave nothing of it behind.

        How long its stages take tells callers how many jobs they may send ahead: of a renderer that reports none only
        the storing counts, and it passes for quick.

        Raises what `job.checkpoint` raises, between two steps; RenderingError for the job's own faults.
        """

    def recover(self, error: Exception) -> None:
        """Make sure that the device renders right again after `error`. Raises EngineUnhealthy if it does not."""


class RenderHandle(Protocol):
    """A submitted job."""

    def cancel(self) -> None:
        """Stop the job: at once while it waits, else at its next denoising step. Too late, it does nothing."""


class Engine:
    """Renders requests one after the other and publishes their pictures."""

    def __init__(
        self,
        renderer: Renderer,
        artifacts: ArtifactStore,
        *,
        replica_id: str = "local",
        queue_size: int = 8,
        tail_threads: int = 1,
        step_timeout_s: float = 120.0,
        store_timeout_s: float = STORE_TIMEOUT_S,
        load_timeout_s: float = 3600.0,
    ) -> None:
        self._renderer = renderer
        self._artifacts = artifacts
        self._replica_id = replica_id
        self._step_timeout_s = step_timeout_s
        self._store_timeout_s = store_timeout_s
        self._load_timeout_s = load_timeout_s
        self._waiting = _Waiting(queue_size)
        self._tail: queue.Queue[tuple[RenderJob, Picture] | None] = queue.Queue(_TAIL_BACKLOG * tail_threads)
        self._active: set[RenderJob] = set()
        self._lost: EngineUnhealthy | None = None
        self._loaded = threading.Event()
        self._load_error: BaseException | None = None
        self._closing = threading.Event()
        self._device_thread = threading.Thread(target=self._run_device, name="engine-device", daemon=True)
        self._tail_threads = [
            threading.Thread(target=self._run_tail, name=f"engine-tail-{n}", daemon=True) for n in range(tail_threads)
        ]
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    @property
    def device(self) -> str:
        """Name of the device that renders."""
        return self._renderer.device

    def start(self) -> None:
        """Load the model and begin; returns when the first job can be rendered.

        Raises what loading raised, or ModelUnusable if it has not ended in time: then only a new process helps.
        """
        for thread in (self._device_thread, *self._tail_threads):
            thread.start()
        if not self._loaded.wait(self._load_timeout_s):
            # Should it come to an end after all, the device thread ends with it.
            self._load_error = ModelUnusable(
                f"The model was not loaded within {self._load_timeout_s:g} seconds (load_timeout_s); the disk, the "
                "network or the device hangs, or is too slow for it."
            )
            self.close(0.0)
            raise self._load_error
        if self._load_error is not None:
            self.close()
            raise self._load_error
        self._watchdog.start()

    def submit(self, request: RenderRequest, on_event: EventSink, *, bounded: bool = True) -> RenderHandle:
        """Queue a request; its events go to `on_event`. Raises EngineBusy, EngineUnhealthy.

        `bounded=False`: the caller bounds how many wait; it counts for no limit.
        """
        self.check_health()
        job = RenderJob(request, on_event, self._waiting.withdraw)
        self._waiting.add(job, bounded=bounded)
        return job

    def check_health(self) -> None:
        """Raise EngineUnhealthy if a step never came, a failure could not be recovered, or the picture store hangs."""
        if self._lost is not None:
            raise EngineUnhealthy(str(self._lost))
        if self._closing.is_set():
            raise EngineUnhealthy("The engine is closed.")

    def close(self, timeout_s: float = 10.0) -> bool:
        """Cancel all jobs and end the threads; return whether they ended within `timeout_s` seconds."""
        self._closing.set()
        for job in self._waiting.close():
            job.fail(RenderCancelled())
        for job in tuple(self._active):
            job.cancel()
        # A thread that hangs in the driver will not end; nothing is gained by waiting for it.
        deadline = time.monotonic() + (min(timeout_s, _LOST_CLOSE_S) if self._lost else timeout_s)
        threads = (self._device_thread, *self._tail_threads, self._watchdog)
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run_device(self) -> None:
        try:
            self._renderer.load()
        except BaseException as error:  # noqa: BLE001  (handed to the caller of `start`)
            self._load_error = error
        self._loaded.set()
        while self._load_error is None and self._serve_next():
            pass
        for _ in self._tail_threads:
            self._tail.put(None)

    def _serve_next(self) -> bool:
        # A function of its own, so that no local keeps the last picture's device memory while nothing is to do.
        if (job := self._waiting.take()) is None:
            return False
        with job_context(job.request.job_id):
            # Requests of an earlier release do not know the field.
            alone = getattr(job.request, "alone", False)
            self._active.add(job)
            if alone:
                self._let_news_leave(job)
            picture = None
            if (lost := self._lost) is None:
                picture = self._render(job, alone=alone)
            else:
                # Meanwhile; between the queue and the device it may have been overlooked when the others were told.
                job.abandon(lost)
            if picture is None:
                self._active.discard(job)
            else:
                job.rest()
                self._tail.put((job, picture))
            if alone:
                self._let_news_leave(job)
        return True

    def _let_news_leave(self, job: RenderJob) -> None:
        """Wait until all pictures are stored, and everybody has heard of them. Short for a job that is cancelled."""
        self._tail.join()
        job.cancelled.wait(NEWS_S)

    def _render(self, job: RenderJob, *, alone: bool) -> Picture | None:
        try:
            job.checkpoint()
            job.begin(self._replica_id, self._renderer.device)
            if alone:
                job.cancelled.wait(NEWS_S)
            return self._renderer.render(job)
        except Exception as error:  # noqa: BLE001  (whatever a library raises is this job's failure)
            failure = _as_failure(error)
            try:
                self._renderer.recover(error)
            except EngineUnhealthy as lost:
                self._lose(lost)
            except Exception as broken:  # noqa: BLE001  (a device that cannot be recovered raises anything)
                _log.exception("the device could not be recovered")
                self._lose(EngineUnhealthy(f"The device could not be recovered ({type(broken).__name__})."))
            job.fail(failure)
            return None

    def _run_tail(self) -> None:
        while self._publish_next():
            pass

    def _publish_next(self) -> bool:
        if (item := self._tail.get()) is None:
            return False
        job, picture = item
        try:
            with job_context(job.request.job_id):
                self._publish(job, picture)
        finally:
            self._active.discard(job)
            self._tail.task_done()
        return True

    def _publish(self, job: RenderJob, picture: Picture) -> None:
        job.resume()
        try:
            picture.wait()
        except Exception as error:  # noqa: BLE001  (the device failed, behind the back of its thread)
            _log.exception("the device failed")
            self._lose(EngineUnhealthy(f"The device failed ({type(error).__name__})."))
            return
        try:
            job.checkpoint()
            job.leave_device()
            request = job.request
            job.finish(self._artifacts.publish(request.artifact_key, picture.png(), request.width, request.height))
        except Exception as error:  # noqa: BLE001  (see `_render`)
            job.fail(_as_failure(error))

    def _watch(self) -> None:
        interval_s = min(_WATCH_INTERVAL_S, self._step_timeout_s / 4, self._store_timeout_s / 4)
        while self._lost is None and not self._closing.wait(interval_s):
            now, active = time.monotonic(), tuple(self._active)
            if hung := [job for job in active if _is_older(job.moved_at, now - self._step_timeout_s)]:
                _log.error("no progress for %g s in %s: the device is given up", self._step_timeout_s, _ids(hung))
                self._lose(EngineUnhealthy(f"The device made no progress for {self._step_timeout_s:g} seconds."))
            elif hung := [job for job in active if _is_older(job.storing_since, now - self._store_timeout_s)]:
                sentence = f"The picture store did not answer for {self._store_timeout_s:g} seconds."
                _log.error("%s The process is given up; it was storing %s", sentence, _ids(hung))
                # None of those on their way is to blame; and whoever waits for the device only finds another one.
                self._lose(EngineUnhealthy(sentence), ArtifactUnwritable(sentence))

    def _lose(self, error: EngineUnhealthy, failure: RenderingError | None = None) -> None:
        """Take no more jobs; those on their way end with the device, or with a failure of their own."""
        self._lost = error
        for job in self._waiting.close():
            job.abandon(error)
        for job in tuple(self._active):
            if failure is None:
                job.abandon(error)
            else:
                job.fail(failure)


class _Waiting:
    """Jobs that wait for the device: bounded, first in first out, and each can be withdrawn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: deque[RenderJob] = deque()
        self._counted: set[RenderJob] = set()
        self._changed = threading.Condition()
        self._closed = False

    def add(self, job: RenderJob, *, bounded: bool) -> None:
        with self._changed:
            if self._closed:
                raise EngineUnhealthy("The engine is closed.")
            if bounded:
                if len(self._counted) >= self._limit:
                    raise EngineBusy(f"The engine already has {self._limit} jobs waiting; send fewer at a time.")
                self._counted.add(job)
            self._jobs.append(job)
            self._changed.notify()

    def take(self) -> RenderJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            job = self._jobs.popleft()
            self._counted.discard(job)
            return job

    def withdraw(self, job: RenderJob) -> bool:
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            self._counted.discard(job)
            return True

    def close(self) -> list[RenderJob]:
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._counted.clear()
            self._changed.notify_all()
            return left


def _is_older(moment: float | None, horizon: float) -> bool:
    return moment is not None and moment < horizon


def _ids(jobs: Iterable[RenderJob]) -> str:
    return ", ".join(job.request.job_id for job in jobs)


def _as_failure(error: Exception) -> RenderingError:
    if isinstance(error, RenderingError):
        return error
    # The library's own text may hold paths and tensors; the log has it, the client gets a sentence.
    _log.error("rendering failed", exc_info=error)
    return RenderBroken(f"The model failed on this request ({type(error).__name__}); the service's log says why.")
