"""Whether a long job keeps its picture while others, with other adapters and sizes, come and are cancelled."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from stress.checks.contamination import compare
from stress.checks.features import features_of
from stress.checks.group import at_once, expiring, finish, load_report, submit
from stress.checks.guard import guarded
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import CheckReport, Fault, JobTrace
from stress.checks.references import References
from stress.checks.session import Session
from stress.errors import ConflictError, ServiceError
from stress.wire import InferenceRequest, JobState

LONG_SEED = 999
LONG_STEPS = 50
OTHERS_SEED = 1000
OTHERS_GAP_S = 0.1
_LOOK_INTERVAL_S = 0.2
_CANCEL_EVERY = 3
_SIDE_STEP = 64
"""Smallest side that the protocol allows, and a factor that every model family takes."""


async def check_interference(
    session: Session, jobs: int, *, references: References | None = None, steps: int = LONG_STEPS
) -> CheckReport:
    """Draw one long job; while it runs submit `jobs` others, with each adapter in turn, and cancel every third.

    The long job's picture must be that of the same request drawn alone. Where only the base model is named, jobs
    of other sizes, and of the service's other models, take the place of adapters.
    """
    title = "Adapters loaded while a job runs"

    async def body(watch: Watch) -> CheckReport:
        wish = watch.request(seed=LONG_SEED, label="long", num_inference_steps=steps)
        drawn = await references.prepare(watch, [wish]) if references else []
        can_cancel = (await features_of(session)).cancel
        others = await _others(watch, jobs)
        long_request, *others = expiring(watch, [wish, *others])
        long = await submit(watch, long_request)
        await _began(watch, long)
        async with asyncio.TaskGroup() as group:
            # Followed from here on, so that the moment of its end is known.
            group.create_task(finish(watch, [long], jobs_ahead=len(others)))
            runs = await at_once(
                _submit_other(
                    watch,
                    request,
                    after_s=index * OTHERS_GAP_S,
                    jobs_ahead=_ahead(watch, wish, others),
                    cancel=can_cancel and index % _CANCEL_EVERY == 2,
                )
                for index, request in enumerate(others)
            )
            cancelled = {run.job_id for run, was_cancelled in runs if was_cancelled}
            await finish(watch, [run for run, _ in runs], cancelled=cancelled, jobs_ahead=_ahead(watch, wish, others))
        everything = [long, *(run for run, _ in runs)]
        await compare(everything, references)
        figures = {"jobs_interfering": float(len(runs)), "jobs_cancelled": float(len(cancelled))}
        note = _note(session, everything, can_cancel=can_cancel)
        return load_report(watch, title, everything, drawn, figures=figures, note=note)

    return await guarded(session, "interference", title, jobs + (1 if references is None else 2), body)


async def _submit_other(
    watch: Watch, request: InferenceRequest, *, after_s: float, jobs_ahead: int, cancel: bool
) -> tuple[JobRun, bool]:
    """Submit a job and cancel it if asked to; tell whether the service took the cancellation."""
    run = await submit(watch, request, after_s=after_s, jobs_ahead=jobs_ahead)
    if not cancel or not run.accepted:
        return run, False
    try:
        await watch.session.ask(lambda: watch.session.client.cancel(run.job_id))
    except ConflictError:
        # It had ended as an ordinary job by then.
        return run, False
    except ServiceError as error:
        run.found(Fault.WRONG_ANSWER, f"The job could not be cancelled. {error}")
        return run, False
    return run, True


def _ahead(watch: Watch, long: InferenceRequest, others: Sequence[InferenceRequest]) -> int:
    """Return as how many jobs like the smallest of `others` the long job and all of the others count."""
    everything_s = sum(watch.rendering_s(request) for request in (long, *others))
    smallest_s = min((watch.rendering_s(request) for request in others), default=0.0)
    return math.ceil(everything_s / smallest_s) if smallest_s > 0 else len(others)


async def _began(watch: Watch, run: JobRun) -> None:
    """Wait until the job is no longer queued, or until its budget is used up, which following it will tell."""
    deadline_s = watch.now_s() + watch.budget_s(run.request)
    while run.accepted and watch.now_s() < deadline_s:
        try:
            if (await watch.read(run)).status is not JobState.QUEUED:
                return
        except ServiceError:
            return
        await asyncio.sleep(min(_LOOK_INTERVAL_S, watch.session.budgets.poll_interval_s))


async def _others(watch: Watch, jobs: int) -> list[InferenceRequest]:
    adapters = [adapter for adapter in watch.session.adapters if adapter]
    if adapters:
        ways: list[dict[str, Any]] = [{"lora_path": adapter} for adapter in adapters]
    else:
        asking, models = watch.session.asking, await _models(watch.session)
        width, height = _smaller(asking.width), _smaller(asking.height)
        ways = [{"width": width}, {"height": height}, {"width": width, "height": height}]
        ways += [{"model": model} for model in models]
    return [
        watch.request(seed=OTHERS_SEED + index, label=f"other {index}", **way)
        for index, way in enumerate(islice(cycle(ways), jobs))
    ]


async def _models(session: Session) -> list[str]:
    """Return the service's models beside its default one, where it says which it has."""
    try:
        stated = (await session.ask(session.client.root)).model_extra or {}
    except ServiceError:
        return []
    models = stated.get("models")
    return [str(name) for name in models if name != stated.get("default_model")] if isinstance(models, Mapping) else []


def _smaller(side: int) -> int:
    return max(side // 2 // _SIDE_STEP * _SIDE_STEP, _SIDE_STEP)


def _note(session: Session, runs: Sequence[JobRun], *, can_cancel: bool) -> str | None:
    long, *others = (run.trace for run in runs if run.trace is not None)
    notes = []
    if all(_ended_before(long, other) for other in others):
        notes.append("The long job had ended before the others began, so nothing interfered: it needs more steps here.")
    if not any(session.adapters):
        notes.append("No adapter was named: jobs of other sizes and models took their place.")
    if not can_cancel:
        notes.append("This service has no way to cancel, so none was cancelled.")
    return " ".join(notes) or None


def _ended_before(long: JobTrace, other: JobTrace) -> bool:
    """Tell by the service's own clock, where it says both moments: a poll sees the end of a job late."""
    if long.status is not None and other.status is not None and long.status.completed_at and other.status.queued_at:
        return long.status.completed_at <= other.status.queued_at
    return long.final_s is not None and long.final_s <= other.submitted_s
