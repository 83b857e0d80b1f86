"""Dispatching: claim jobs, have a replica render them, report the outcome.

Ray Serve routes, balances and scales; this only decides how many jobs are handed to it. Claims stay a little above what
is being rendered: enough that a freed device has its next job at hand and the autoscaler sees the demand, few enough
that queue positions stay true and a cancelled job has not been routed yet.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from callback.client import TrackerClient
from callback.errors import TrackerError, Unavailable
from callback.records import Claim, ClaimJobs, Finish, JobView, Picture, Progress, Release, Renew
from callback.states import JobState
from deployments.errors import EngineBusy
from deployments.render import (
    RenderEvent,
    RenderFailed,
    RenderFinished,
    RenderProgress,
    RenderRequest,
    RenderStarted,
)
from observability.logs import get_logger, job_context
from serve_app.job_request import JobRequest, JobResult
from serve_app.metrics import RenderMetrics

RENEW_EVERY_S = 1.0
"""How often leases are renewed and progress is told; a start is told at once."""
LOOK_EVERY_S = 1.0
"""How often queued jobs are looked for when nothing says that there are some."""
TIMEOUT_GRACE_S = 10.0
"""The engine ends a job at its timeout; when it does not, the dispatcher ends the wait this much later."""
REPORT_FOR_S = 600.0
"""How long an outcome is offered to a tracker or store that does not take it; then its lease runs out."""
PAUSE_AFTER_TROUBLE_S = 1.0
"""Before a job that nobody could take goes back to the queue, so that it does not go round and round at speed."""

T = TypeVar("T")

_log = get_logger("dispatcher")


class _StorageTroubleError(Exception):
    """The picture could not be published for a reason that is not the job's."""


@dataclass(slots=True)
class _Attempt:
    """A claimed job. `started_at` is set when the device has begun; `lost` when the tracker gave the job to another."""

    claim: Claim
    progress: Progress
    task: asyncio.Task[None] | None = None
    response: Any = None
    started_at: float | None = None
    cancelled: bool = False
    lost: bool = False


class Dispatcher:
    """Brings the jobs of one model to its replicas, for one ingress replica."""

    def __init__(
        self,
        *,
        model: str,
        handle: DeploymentHandle,
        client: TrackerClient,
        has_queued: Callable[[str], bool],
        job_timeout_s: float,
        holder: str,
    ) -> None:
        self._model = model
        self._handle = handle.options(stream=True)
        self._client = client
        self._has_queued = has_queued
        self._job_timeout_s = job_timeout_s
        self._holder = holder
        self._metrics = RenderMetrics(model)
        self._attempts: dict[str, _Attempt] = {}
        self._look = asyncio.Event()
        self._tell = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to claim."""
        self._loops = [asyncio.create_task(self._claim_for_ever()), asyncio.create_task(self._renew_for_ever())]

    async def stop(self, grace_s: float) -> None:
        """Claim no more, hand unstarted jobs back, let started ones finish for up to `grace_s`, hand the rest back."""
        self._stopping = True
        if self._loops:
            self._loops[0].cancel()
        for attempt in tuple(self._attempts.values()):
            if attempt.started_at is None:
                self._abandon(attempt)
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for attempt in tuple(self._attempts.values()):
            self._abandon(attempt)
        await asyncio.gather(*tasks, return_exceptions=True)
        for loop in self._loops:
            loop.cancel()

    def _abandon(self, attempt: _Attempt) -> None:
        if attempt.task is not None:
            attempt.task.cancel()

    def notice(self, view: JobView) -> None:
        """React to a change: look for new jobs, stop cancelled ones."""
        if view.model != self._model:
            return
        if view.state is JobState.QUEUED:
            self._look.set()
        attempt = self._attempts.get(view.key)
        if attempt is not None and view.cancel_requested and not attempt.cancelled:
            attempt.cancelled = True
            if attempt.response is not None:
                attempt.response.cancel()

    # ---- claiming -------------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """How many jobs more to claim: half as many again as are being rendered wait at the replicas, at least one."""
        started = sum(attempt.started_at is not None for attempt in self._attempts.values())
        waiting = len(self._attempts) - started
        return 1 + started // 2 - waiting

    async def _claim_for_ever(self) -> None:
        while True:
            self._look.clear()
            try:
                while self._room > 0 and self._has_queued(self._model):
                    command = ClaimJobs(self._holder, uuid4().hex, self._model, self._room)
                    claims = await self._client.claim(command)
                    for claim in claims:
                        self._begin(claim)
                    if not claims:
                        break
            except TrackerError as error:
                _log.warning("cannot claim", extra={"cause": str(error)})
                await asyncio.sleep(PAUSE_AFTER_TROUBLE_S)
            await _wait(self._look, LOOK_EVERY_S)

    def _begin(self, claim: Claim) -> None:
        attempt = _Attempt(claim, Progress(claim.key, claim.attempt, "waiting", 0, 0))
        self._attempts[claim.key] = attempt
        attempt.task = asyncio.create_task(self._carry_out(attempt))

    # ---- leases and progress --------------------------------------------------------------------------------------

    async def _renew_for_ever(self) -> None:
        while True:
            self._tell.clear()
            progress = tuple(attempt.progress for attempt in self._attempts.values())
            if progress:
                try:
                    lost = await self._client.renew(Renew(self._holder, progress))
                except TrackerError as error:
                    _log.warning("cannot renew leases", extra={"cause": str(error)})
                else:
                    self._drop_lost(lost, {one.key: one.attempt for one in progress})
            await _wait(self._tell, RENEW_EVERY_S)

    def _drop_lost(self, lost: tuple[str, ...], told: dict[str, int]) -> None:
        for key in lost:
            attempt = self._attempts.get(key)
            # A job may have ended and been claimed again by us while the answer was on its way.
            if attempt is not None and attempt.claim.attempt == told[key] and attempt.response is not None:
                attempt.lost = True
                attempt.response.cancel()

    # ---- one attempt ----------------------------------------------------------------------------------------------

    async def _carry_out(self, attempt: _Attempt) -> None:
        claim = attempt.claim
        with job_context(claim.job_id):
            try:
                report = await self._render(attempt)
            except asyncio.CancelledError:
                report = Release(claim.key, claim.attempt, blamed=False, reason="its ingress replica was stopped")
            finally:
                if attempt.response is not None:
                    # Ending the iteration does not end the replica's work; an ended response ignores this.
                    attempt.response.cancel()
            try:
                await self._report(attempt, report)
            finally:
                self._attempts.pop(claim.key, None)
                self._look.set()

    async def _render(self, attempt: _Attempt) -> Finish | Release:
        claim = attempt.claim
        request = JobRequest.model_validate_json(claim.request_json)
        attempt.response = self._handle.render.remote(self._render_request(claim, request))
        try:
            async for event in self._with_deadline(attempt):
                if (report := self._take(attempt, event)) is not None:
                    return report
        except TimeoutError:
            return self._timeout(claim)
        except (EngineBusy, _StorageTroubleError) as error:
            await asyncio.sleep(PAUSE_AFTER_TROUBLE_S)
            return Release(claim.key, claim.attempt, blamed=False, reason=str(error))
        except (RayError, RayServeException) as error:
            if attempt.cancelled:
                return _failure(claim, "cancelled", "The client cancelled the job.")
            _log.warning("replica lost", extra={"attempt": claim.attempt, "cause": type(error).__name__})
            if attempt.started_at is None:
                await asyncio.sleep(PAUSE_AFTER_TROUBLE_S)
            blamed = attempt.started_at is not None and not self._stopping
            return Release(claim.key, claim.attempt, blamed=blamed, reason=f"the replica ended: {type(error).__name__}")
        return Release(claim.key, claim.attempt, blamed=True, reason="the replica gave no outcome")

    def _render_request(self, claim: Claim, request: JobRequest) -> RenderRequest:
        return RenderRequest(
            job_id=claim.job_id,
            artifact_key=claim.artifact_key,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seed=request.seed,
            timeout_s=self._job_timeout_s,
            adapter=request.adapter,
        )

    async def _with_deadline(self, attempt: _Attempt) -> Any:
        """Yield the replica's events; raises TimeoutError when a started job outlives its timeout and the grace."""
        while True:
            deadline = None
            if attempt.started_at is not None:
                deadline = attempt.started_at + self._job_timeout_s + TIMEOUT_GRACE_S - time.time()
            try:
                async with asyncio.timeout(deadline):
                    event = await anext(attempt.response)
            except StopAsyncIteration:
                return
            yield event

    def _take(self, attempt: _Attempt, event: RenderEvent) -> Finish | None:
        claim, told = attempt.claim, attempt.progress
        match event:
            case RenderStarted():
                attempt.started_at = time.time()
                attempt.progress = Progress(told.key, told.attempt, "loading", 0, 0, attempt.started_at)
                self._tell.set()
                self._look.set()
            case RenderProgress():
                attempt.progress = Progress(
                    told.key, told.attempt, event.stage, event.step, event.steps, attempt.started_at
                )
            case RenderFailed(error_code="timeout"):
                return self._timeout(claim)
            case RenderFailed(error_code="artifact_unwritable"):
                # Storage comes back; the job goes back to the queue instead of paying for it.
                raise _StorageTroubleError(event.error)
            case RenderFailed():
                return _failure(claim, event.error_code, event.error)
            case RenderFinished():
                self._metrics.rendered(event.seconds)
                return _completion(claim, event)
        return None

    def _timeout(self, claim: Claim) -> Finish:
        sentence = f"Rendering took longer than {self._job_timeout_s:g} s."
        return Finish(claim.key, claim.attempt, JobState.TIMEOUT, error=sentence, error_code="job_timeout")

    async def _report(self, attempt: _Attempt, report: Finish | Release) -> None:
        if attempt.lost:
            return  # Another attempt has the job; the tracker would not listen.
        if isinstance(report, Finish):
            taken = await self._until_taken(lambda: self._client.finish(report))
        else:
            taken = await self._until_taken(lambda: self._client.release(report))
        if not taken:
            _log.warning("report came too late", extra={"attempt": report.attempt})

    async def _until_taken(self, send: Callable[[], Awaitable[T]]) -> T | None:
        deadline = time.monotonic() + REPORT_FOR_S
        while True:
            try:
                return await send()
            except Unavailable as error:
                if time.monotonic() > deadline:
                    _log.exception("outcome could not be reported; the lease will run out")
                    return None
                _log.warning("outcome not taken yet", extra={"cause": str(error)})
                await asyncio.sleep(PAUSE_AFTER_TROUBLE_S)


def _failure(claim: Claim, error_code: str, error: str) -> Finish:
    return Finish(claim.key, claim.attempt, JobState.FAILED, error=error, error_code=error_code)


def _completion(claim: Claim, event: RenderFinished) -> Finish:
    artifact = event.artifact
    picture = Picture(artifact.key, artifact.sha256, artifact.size_bytes, artifact.width, artifact.height)
    result = JobResult(
        seed=event.seed, determinism=event.determinism, seconds=event.seconds, warnings=list(event.warnings)
    )
    return Finish(claim.key, claim.attempt, JobState.COMPLETED, picture, result.model_dump_json())


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
