"""One job, from submit to callback, as every check watches it.

A fault of the service becomes a finding of the job, never an exception. What an older service does not have (held
polls, `callback.final`, recorded hashes) is not asked of it: compared is what is there.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from stress.checks.collecting import Collector
from stress.checks.figures import latencies
from stress.checks.following import Follower
from stress.checks.job_run import JobRun
from stress.checks.outcome import CheckReport, Fault, Finding, JobTrace, Verdict
from stress.checks.patience import patiently
from stress.checks.session import Session
from stress.errors import ServiceBusyError, ServiceError, ServiceUnreachableError, UnexpectedAnswerError
from stress.image_validator import DEFAULT_SIDE
from stress.wire import CallbackReport, InferenceRequest, JobState, JobStatus, SubmitAnswer

__all__ = ["JobRun", "Watch"]

_DEFAULT_STEPS = 28
"""Of the protocol, for requests that leave the steps to the service."""


class Watch:
    """One check's view of its jobs: its clock, its name, and the service."""

    def __init__(self, session: Session, check: str) -> None:
        self.session = session
        self.check = check
        self.started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._follower = Follower(session, check)
        self._collector = Collector(session, check, self.started_at)
        self._submitted: Counter[str] = Counter()
        self._runs: dict[int, JobRun] = {}
        self.partial: Callable[[], CheckReport] | None = None
        """How the check reports what it has when it is interrupted, if not with `runs`."""

    @property
    def runs(self) -> tuple[JobRun, ...]:
        """Every job that was submitted and not forgotten, in order of time."""
        return tuple(self._runs.values())

    def forget(self, run: JobRun) -> None:
        """Let go of a job of which the check keeps what it needs."""
        self._runs.pop(id(run), None)

    def now_s(self) -> float:
        """Seconds since the check began."""
        return time.monotonic() - self._started

    def request(self, *, seed: int, label: str = "", jobs_ahead: int = 0, **fields: object) -> InferenceRequest:
        """Return the session's request with this seed, a callback to the inbox, and an id of the kit's own.

        The id makes a repeated submission harmless on services without idempotency keys; `label` becomes part of it.
        `fields` override; one that is None is left out. The callback expires as `expiry` says.
        """
        asking, session = self.session.asking, self.session
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(part for part in ("kit", self.check, label) if part))[:80]
        values: dict[str, object] = {
            "prompt": asking.prompt,
            "width": asking.width,
            "height": asking.height,
            "num_inference_steps": asking.steps,
            "seed": seed,
            "job_id": f"{name}-{uuid4().hex[:12]}",
            "callback_url": session.inbox.callback_url,
            "callback_secret": session.secret or None,
            **fields,
        }
        wish = InferenceRequest.model_validate({key: value for key, value in values.items() if value is not None})
        if "expiry" in fields:
            return wish
        return wish.model_copy(update={"expiry": self.expiry([wish], jobs_ahead)})

    def expiry(self, requests: Sequence[InferenceRequest], jobs_ahead: int = 0, *, least_s: float = 0.0) -> datetime:
        """Return when callbacks of jobs that are submitted now shall expire.

        That is after the session's minutes, or later if one of the jobs, with so many others before it, may rightly
        take longer, or if `least_s` is longer; exactly after them where they are fixed.
        """
        asking, now = self.session.asking, datetime.now(UTC)
        asked_s = 60 * asking.expiry_minutes
        if asking.expiry_is_fixed:
            return now + timedelta(seconds=asked_s)
        longest_s = max((self.budget_s(request, jobs_ahead) for request in requests), default=0.0)
        return now + timedelta(seconds=max(asked_s, least_s, longest_s + self.session.budgets.callback_s))

    async def submit(
        self,
        request: InferenceRequest,
        *,
        label: str = "",
        idempotency_key: str | None = None,
        jobs_ahead: int = 0,
    ) -> JobRun:
        """Submit the job once; a service that is busy is asked again under the same key.

        That goes on for as long as this job and `jobs_ahead` others like it may take: with a bounded queue the last
        of many is rightly taken only when those before it have ended.
        """
        run = JobRun(label, request)
        self._runs[id(run)] = run
        if request.job_id is not None and self._submitted[request.job_id]:
            run.earlier_entries = len(await self.session.inbox.entries_for(request.job_id))
        submitted_s = self.now_s()
        key = idempotency_key or uuid4().hex
        run.answer, took_s = await self._answer(run, key, self.budget_s(request, jobs_ahead))
        run.trace = JobTrace(
            job_id=run.answer.job_id if run.answer else request.job_id or "",
            label=label,
            request=request.model_dump(mode="json", exclude_unset=True, exclude={"callback_secret"}),
            submitted_s=submitted_s,
            submit_took_s=took_s,
            accepted=run.answer is not None,
        )
        if run.accepted:
            if request.job_id not in {None, run.job_id}:
                run.found(Fault.WRONG_JOB_ID, f"Asked for the job id {request.job_id!r}, the answer has another.")
            self._submitted[run.job_id] += 1
            self.session.progress.job_submitted(self.check, run.job_id)
        return run

    async def follow(self, run: JobRun, *, jobs_ahead: int = 0) -> None:
        """Poll the job to its end, and demand that it is completed."""
        await self.await_final(run, jobs_ahead=jobs_ahead)
        status = run.status
        if status is None or not status.is_final:
            return
        if status.status is not JobState.COMPLETED:
            why = ": ".join(word for word in (status.error_code, status.error) if word) or "no error was given"
            run.found(Fault.FAILED_JOB, f"The job ended as {status.status} ({why}).")

    async def await_final(self, run: JobRun, *, jobs_ahead: int = 0, least_s: float = 0.0) -> None:
        """Poll the job to its end, whatever that is, and demand only that its record stays readable and whole.

        It may take the budget of its size, or `least_s` if that is longer.
        """
        if not run.accepted:
            return
        budget_s = max(self.budget_s(run.request, jobs_ahead), least_s)
        status = await self._follower.final_status(run, budget_s)
        if status is None:
            return
        run.update(final_s=self.now_s())
        if status.callback is None:
            await self._follower.missed_section(run)

    async def section_when(
        self, run: JobRun, wanted: Callable[[CallbackReport], bool], *, timeout_s: float
    ) -> CallbackReport | None:
        """Read the status until its `callback` section is as `wanted`; return the latest section in any case."""
        return await self._follower.section_when(run, wanted, timeout_s=timeout_s)

    async def read(self, run: JobRun) -> JobStatus:
        """Read the job's status and keep it. Raises as `Session.ask` and `AsyncDarkroomClient.status`."""
        return await self.session.ask(lambda: self._follower.read(run))

    def budget_s(self, request: InferenceRequest, jobs_ahead: int = 0) -> float:
        """Seconds in which this job must be final when so many of its size are before it."""
        return self.session.budgets.job_s(
            request.width or DEFAULT_SIDE,
            request.height or DEFAULT_SIDE,
            request.num_inference_steps or _DEFAULT_STEPS,
            jobs_ahead,
        )

    def rendering_s(self, request: InferenceRequest) -> float:
        """Return the part of the budget that the job's own rendering has, in seconds."""
        return self.budget_s(request, 1) - self.budget_s(request)

    async def collect(self, run: JobRun, *, callback: bool = True) -> None:
        """Wait for the job's callback, fetch its picture, and compare and check what came.

        To be called once for every job that was submitted, however far it came: it ends the job's progress. Without
        `callback` none is waited for or judged: the check provoked something else.
        """
        status = run.status
        if run.accepted and status is not None and status.is_final:
            if callback:
                await self._collector.callbacks(run, status)
            if status.status is JobState.COMPLETED:
                await self._collector.pictures(run, status)
            await self._follower.must_stay_final(run, status)
        self.session.progress.job_ended(self.check, run.job_id, good=run.good)

    async def collect_callbacks(self, run: JobRun) -> None:
        """Wait for a final job's callback and check all that came for it, whatever the job's end was."""
        if run.status is not None and run.status.is_final:
            await self._collector.callbacks(run, run.status)

    async def run(self, request: InferenceRequest, *, label: str = "", jobs_ahead: int = 0) -> JobRun:
        """Submit, follow and collect one job."""
        run = await self.submit(request, label=label)
        await self.follow(run, jobs_ahead=jobs_ahead)
        await self.collect(run)
        return run

    async def recheck(self, runs: Sequence[JobRun], *, grace_s: float = 0.0) -> None:
        """Look once more, after `grace_s`, at what arrived for jobs that were collected: duplicates come late."""
        await asyncio.sleep(grace_s)
        for run in runs:
            if run.accepted:
                await self._collector.read_entries(run)

    async def look_for_duplicates(self, run: JobRun) -> None:
        """Wait for as long as must stay quiet, then demand that no callback of the job came twice."""
        await asyncio.sleep(self.session.budgets.quiet_s)
        await self._collector.duplicates(run)

    def report(
        self,
        name: str,
        title: str,
        runs: Sequence[JobRun],
        *,
        findings: Sequence[Finding] = (),
        figures: Mapping[str, float] | None = None,
        series: Mapping[str, tuple[tuple[float, float], ...]] | None = None,
        note: str | None = None,
    ) -> CheckReport:
        """Make the check's report: failed if there is any finding, with the latencies of its jobs."""
        for run in runs:
            self.session.seen.note(run)
        everything = (*findings, *(finding for run in runs for finding in run.findings))
        traces = tuple(run.trace for run in runs if run.trace is not None)
        return CheckReport(
            name=name,
            title=title,
            verdict=Verdict.FAILED if everything else Verdict.PASSED,
            seconds=self.now_s(),
            findings=everything,
            jobs=traces,
            figures={**latencies(traces), **(figures or {})},
            series=dict(series or {}),
            note=note,
        )

    async def _answer(self, run: JobRun, key: str, budget_s: float) -> tuple[SubmitAnswer | None, float]:
        """Return the answer and what the last call took, pauses for a busy service left out."""
        took_s = 0.0

        async def submit() -> SubmitAnswer:
            nonlocal took_s
            asked_s = self.now_s()
            try:
                # An older service ignores the key; then only an id of the kit's own keeps a repeat from being a job.
                repeat = run.request.job_id is not None
                return await self.session.submit(run.request, idempotency_key=key, repeat=repeat)
            finally:
                took_s = self.now_s() - asked_s

        try:
            # Busy means not accepted, so sending it again under the same key makes one job.
            return await patiently(submit, budget_s), took_s
        except ServiceBusyError as error:
            sentence = f"The service was busy, and {budget_s:.0f} s were allowed for the submit. {error}"
            run.found(Fault.REFUSED_SUBMIT, sentence)
        except ServiceError as error:
            run.found(_submit_fault(error), str(error))
        return None, took_s


def _submit_fault(error: ServiceError) -> Fault:
    if isinstance(error, ServiceUnreachableError):
        return Fault.NO_ANSWER
    return Fault.WRONG_ANSWER if isinstance(error, UnexpectedAnswerError) else Fault.REFUSED_SUBMIT
