"""What the load checks do with many jobs: start them together, end them all, and report them beside references."""

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from stress.checks.figures import latencies
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import CheckReport, Fault, JobTrace
from stress.wire import InferenceRequest, JobState

T = TypeVar("T")

MIN_EXPIRY_S = 600.0


def expiring(watch: Watch, requests: Iterable[InferenceRequest]) -> list[InferenceRequest]:
    """Return the requests with an expiry in 10 minutes, or later if that many jobs may rightly take longer.

    One that the session has fixed goes before that.
    """
    asked = list(requests)
    expiry = watch.expiry(asked, len(asked), least_s=MIN_EXPIRY_S)
    return [request.model_copy(update={"expiry": expiry}) for request in asked]


async def at_once(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of them concurrently; the results come back in the given order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
    return [task.result() for task in tasks]


async def submit(watch: Watch, request: InferenceRequest, *, after_s: float = 0.0, jobs_ahead: int = 0) -> JobRun:
    """Submit one job, `after_s` from now, to a service that may have to do `jobs_ahead` others before."""
    await asyncio.sleep(after_s)
    return await watch.submit(request, label=f"seed {request.seed}", jobs_ahead=jobs_ahead)


async def finish(
    watch: Watch, runs: Sequence[JobRun], *, cancelled: Collection[str] = (), jobs_ahead: int | None = None
) -> None:
    """Follow and collect all of them concurrently, then look for what must not be: one id twice, late duplicates.

    Jobs with ids in `cancelled` must end as cancelled instead of completed. Each may have to wait for `jobs_ahead`
    others (None: for all of these).
    """
    ahead = len(runs) if jobs_ahead is None else jobs_ahead

    async def end(run: JobRun) -> JobRun:
        if run.job_id in cancelled:
            await watch.await_final(run, jobs_ahead=ahead)
            _demand_cancelled(run)
        else:
            await watch.follow(run, jobs_ahead=ahead)
        await watch.collect(run)
        run.release()
        return run

    await at_once(end(run) for run in runs)
    await watch.recheck(runs, grace_s=watch.session.budgets.quiet_s)
    _find_double_ids(runs)


def load_report(
    watch: Watch,
    title: str,
    runs: Sequence[JobRun],
    drawn: Sequence[JobRun],
    *,
    figures: Mapping[str, float] | None = None,
    note: str | None = None,
) -> CheckReport:
    """Report `runs` and the references that were drawn for them; latencies and rate are those of `runs` alone."""
    traces = tuple(run.trace for run in runs if run.trace is not None)
    own = {**latencies(traces), **rate(traces), "references_drawn": float(len(drawn)), **(figures or {})}
    return watch.report(watch.check, title, [*runs, *drawn], figures=own, note=note)


def rate(traces: Sequence[JobTrace]) -> dict[str, float]:
    """Return how many jobs became final in a second, from the first submit to the last final status."""
    final = [trace.final_s for trace in traces if trace.final_s is not None]
    if not final:
        return {}
    seconds = max(final) - min(trace.submitted_s for trace in traces)
    return {"jobs_per_s": round(len(final) / seconds, 4)} if seconds > 0 else {}


def _demand_cancelled(run: JobRun) -> None:
    status = run.status
    if status is None or not status.is_final:
        return
    if status.status is not JobState.FAILED:
        run.found(Fault.WRONG_ANSWER, f"The job was cancelled and ended as {status.status}, expected failed.")
    elif status.error_code not in {None, "cancelled"}:
        run.found(Fault.FAILED_JOB, f"The job was cancelled, but failed by itself ({status.error_code}).")


def _find_double_ids(runs: Sequence[JobRun]) -> None:
    first: dict[str, JobRun] = {}
    for run in runs:
        if run.accepted and first.setdefault(run.job_id, run) is not run:
            run.found(Fault.DOUBLE_JOB, f"Two accepted jobs have the id {run.job_id!r}.")
