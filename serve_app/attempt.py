"""One attempt at one job: have a replica render it, follow its events, and say what to report to the tracker."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from callback.records import Claim, Finish, Picture, Progress, Release
from callback.states import JobState
from deployments.engine import STORE_TIMEOUT_S
from deployments.errors import EngineBusy
from deployments.render import (
    RenderEvent,
    RenderFailed,
    RenderFinished,
    RenderProgress,
    RenderRequest,
    RenderStarted,
)
from observability.logs import get_logger
from serve_app.job_request import JobRequest, JobResult

TIMEOUT_GRACE_S = 10.0
"""The engine ends a job on its device at its timeout; when it does not, the wait for it ends this much later."""
STORING_GRACE_S = STORE_TIMEOUT_S + 60.0
"""A picture that the device has finished may wait this much longer: for the engine to give up on the store."""

_log = get_logger("dispatcher")


class _Overdue(Exception):
    """The replica did not end the job in time. Not a TimeoutError: Ray's own errors are some, too."""


class Response(Protocol):
    """What a replica tells of a job, as Ray Serve or a shipment brings it."""

    async def __anext__(self) -> RenderEvent:
        """Return the next event. Raises StopAsyncIteration, and errors of Ray's, Ray Serve's and the replica's."""
        ...

    def cancel(self) -> None:
        """Stop the job; too late, it does nothing."""
        ...


Send = Callable[[RenderRequest], Response]


class Listener(Protocol):
    """What an attempt tells while it runs."""

    def started(self) -> None:
        """The device has begun; of a quick job only the end is told."""
        ...

    def finished(self, seconds: dict[str, float]) -> None:
        """The picture is published; `seconds` per stage."""
        ...

    def no_replica(self, reason: str) -> None:
        """Nobody could take the job, through no fault of its own."""
        ...

    def no_storage(self, reason: str) -> None:
        """The picture could not be published, through no fault of the job."""
        ...


class Attempt:
    """A claimed job on its way through a replica.

    `cancelled`: the client wants it to stop. `lost`: the tracker gave the job to another attempt. `abandoned`: this
    ingress replica is being stopped. `started_at` (wall time) is set when the device has begun. `send` gives a
    replica the job. `quick`: such jobs take milliseconds now, so that their start need not be told.
    """

    def __init__(
        self, claim: Claim, send: Send, job_timeout_s: float, listener: Listener, *, quick: bool = False
    ) -> None:
        self.claim = claim
        self.progress = Progress(claim.key, claim.attempt, "waiting", 0, 0)
        self.started_at: float | None = None
        self.cancelled = False
        self.lost = False
        self.abandoned = False
        self._send = send
        self._job_timeout_s = job_timeout_s
        self._listener = listener
        self._quick = quick
        self._response: Response | None = None

    def cancel(self) -> None:
        """Stop it for the client: at the next denoising step if it runs."""
        self.cancelled = True
        self.stop_rendering()

    def lose(self) -> None:
        """Stop it because the job is no longer this attempt's."""
        self.lost = True
        self.stop_rendering()

    def abandon(self) -> None:
        """Stop it because this ingress replica goes away."""
        self.abandoned = True
        self.stop_rendering()

    def stop_rendering(self) -> None:
        """Cancel the response; one that has ended ignores it."""
        if self._response is not None:
            # A response that could never be routed raises here what its iteration raises as well.
            with contextlib.suppress(RayError, RayServeException, asyncio.CancelledError):
                self._response.cancel()

    async def outcome(self) -> Finish | Release:
        """Have the job rendered and return what to report; whatever goes wrong becomes a report as well."""
        claim = self.claim
        try:
            request = JobRequest.model_validate_json(claim.request_json)
        except ValueError:
            _log.exception("unreadable job", extra={"attempt": claim.attempt})
            return self._failure("render_error", "This version of the service cannot read the job.")
        try:
            return await self._render(request)
        except _Overdue:
            return self._after_silence()
        except EngineBusy as error:
            self._listener.no_replica(str(error))
            return self._release(str(error))
        except (RayError, RayServeException) as error:
            return self._after_loss(error)
        except Exception as error:  # noqa: BLE001 - without a report the job would wait for its lease to run out
            _log.exception("dispatching failed", extra={"attempt": claim.attempt})
            return self._release(f"dispatching failed: {type(error).__name__}", blamed=True)
        finally:
            # Ending the iteration does not end the replica's work.
            self.stop_rendering()

    async def _render(self, request: JobRequest) -> Finish | Release:
        self._response = response = self._send(self._render_request(request))
        if self.cancelled or self.lost or self.abandoned:
            self.stop_rendering()
        async for event in self._events(response):
            if (report := self._take(event)) is not None:
                return report
        return self._release("the replica gave no outcome", blamed=True)

    def _render_request(self, request: JobRequest) -> RenderRequest:
        return RenderRequest(
            job_id=self.claim.job_id,
            artifact_key=self.claim.artifact_key,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seed=request.seed,
            timeout_s=self._job_timeout_s,
            adapter=request.adapter,
            # The first one may have died with its replica, and this job be the cause or have stood beside it. One that
            # was merely handed back is treated alike: that is rare.
            alone=self.claim.attempt > 1,
            start_may_be_left_out=self._quick,
        )

    async def _events(self, response: Response) -> AsyncIterator[RenderEvent]:
        """Yield the replica's events; raises `_Overdue` when a started job outlives its timeout and the grace."""
        loop = asyncio.get_running_loop()
        started_at: float | None = None
        while True:
            if self.started_at is not None and started_at is None:
                started_at = loop.time()
            try:
                async with asyncio.timeout_at(None if started_at is None else started_at + self._bound_s()) as bound:
                    event = await anext(response)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if bound.expired():
                    raise _Overdue from None
                raise
            yield event

    def _bound_s(self) -> float:
        """Return how long after its start the job must have ended."""
        grace_s = STORING_GRACE_S if self.progress.stage == "storing" else TIMEOUT_GRACE_S
        return self._job_timeout_s + grace_s

    def _take(self, event: RenderEvent) -> Finish | Release | None:
        """Note an event; return what to report if it was the last one."""
        told = self.progress
        match event:
            case RenderStarted():
                self.started_at = time.time()
                self.progress = Progress(told.key, told.attempt, "loading", 0, 0, self.started_at)
                self._listener.started()
            case RenderProgress():
                self.progress = Progress(told.key, told.attempt, event.stage, event.step, event.steps, self.started_at)
            case RenderFailed():
                return self._after_failure(event)
            case RenderFinished():
                if self.started_at is None:
                    # Replicas of an earlier release do not know the field, and always tell the start.
                    self.started_at = time.time() - (getattr(event, "since_start_s", None) or 0.0)
                return self._completion(event)
        return None

    def _after_failure(self, event: RenderFailed) -> Finish | Release:
        match event.error_code:
            case "timeout":
                return self._timeout()
            case "cancelled":
                return self._after_stop()
            case "artifact_unwritable":
                # Storage comes back: the job goes back to the queue instead of paying for it.
                self._listener.no_storage(event.error)
                return self._release(event.error)
        return self._failure(event.error_code, event.error)

    def _after_loss(self, error: RayError | RayServeException) -> Finish | Release:
        """Return the report for a response that ended with an error of Ray's."""
        if self.cancelled or self.lost or self.abandoned:
            return self._after_stop()
        kind = type(error).__name__
        _log.warning("replica lost", extra={"attempt": self.claim.attempt, "cause": kind})
        if isinstance(error, RayServeException):
            self._listener.no_replica(f"Ray Serve has no replica for the job ({kind}).")
        elif self.started_at is None:
            # A replica that cannot begin answers at once until its process has ended.
            self._listener.no_replica(f"A replica could not begin the job ({kind}).")
        return self._release(f"the replica ended: {kind}", blamed=self.started_at is not None)

    def _after_stop(self) -> Finish | Release:
        if self.cancelled:
            return self._failure("cancelled", "The client cancelled the job.")
        return self._release("its ingress replica was stopped")

    def _after_silence(self) -> Finish | Release:
        if self.progress.stage == "storing":
            reason = "the picture was rendered, and could not be stored in time"
            self._listener.no_storage(f"A picture could not be stored within {STORING_GRACE_S:g} s.")
            return self._release(reason)
        return self._timeout()

    def _timeout(self) -> Finish:
        sentence = (
            f"Rendering took longer than {self._job_timeout_s:g} s. Ask for fewer steps or a smaller picture, or have "
            "the operator raise job_timeout_s."
        )
        return self._finish(JobState.TIMEOUT, error=sentence, error_code="job_timeout")

    def _failure(self, error_code: str, error: str) -> Finish:
        return self._finish(JobState.FAILED, error=error, error_code=error_code)

    def _completion(self, event: RenderFinished) -> Finish | Release:
        artifact = event.artifact
        if artifact.key != self.claim.artifact_key:
            # It cannot be; but nobody may ever get somebody else's picture.
            _log.error("a replica told of another job's picture", extra={"attempt": self.claim.attempt})
            return self._release("the replica told of another job's picture", blamed=True)
        self._listener.finished(event.seconds)
        picture = Picture(artifact.key, artifact.sha256, artifact.size_bytes, artifact.width, artifact.height)
        result = JobResult(
            seed=event.seed, determinism=event.determinism, seconds=event.seconds, warnings=list(event.warnings)
        )
        return self._finish(JobState.COMPLETED, picture=picture, result_json=result.model_dump_json())

    def _finish(self, state: JobState, **values: Any) -> Finish:
        return Finish(self.claim.key, self.claim.attempt, state, started_at=self.started_at, **values)

    def _release(self, reason: str, *, blamed: bool = False) -> Release:
        return Release(self.claim.key, self.claim.attempt, blamed=blamed, reason=reason)
