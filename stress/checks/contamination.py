"""Whether every job got its own picture: compared with the serial reference, in orders that let state leak."""

import asyncio
from collections.abc import Sequence

from stress.checks.group import at_once, expiring, finish, load_report, submit
from stress.checks.guard import guarded
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import CheckReport, Fault
from stress.checks.references import Reference, References
from stress.checks.seen import key_of
from stress.checks.session import Session
from stress.errors import UnreadablePictureError
from stress.picture_comparison import ROUNDING, Fingerprint, MatchKind, identify
from stress.wire import InferenceRequest

ORDER_SEED = 200
REUSE_SEED = 300
# On grounds of middle brightness: an obedient model must not be taken for one that draws black or white pictures.
_FIRST_WISH = "a blue triangle on a yellow background"
_SECOND_WISH = "a red heart on a green background"
_FAULTS = {MatchKind.SWAPPED: Fault.SWAPPED_PICTURE, MatchKind.STALE: Fault.STALE_PICTURE}


async def check_contamination(session: Session, *, references: References | None = None) -> CheckReport:
    """Submit jobs in orders in which one may leave traces in the next, and use an id again for another picture.

    An adapter runs between two equal base jobs (another prompt, where no adapter was named), and equal jobs run
    twice at the same time. Without `references` only jobs of this check are compared with each other.
    """
    title = "Every job its own picture"

    async def body(watch: Watch) -> CheckReport:
        requests = _in_orders_that_leak(watch)
        reused = _reused(watch)
        drawn = await references.prepare(watch, [*requests, *reused]) if references else []
        runs = await at_once(
            # A little apart, so that the service takes them in this order.
            submit(watch, request, after_s=0.02 * index, jobs_ahead=len(requests))
            for index, request in enumerate(expiring(watch, requests))
        )
        await finish(watch, runs)
        for request in reused:
            run = await submit(watch, expiring(watch, [request])[0])
            await finish(watch, [run])
            runs.append(run)
        await compare(runs, references)
        _demand_effect(runs)
        adapter = any(run.request.lora_path for run in runs)
        note = None if adapter else "No adapter was named: jobs with another prompt ran between equal jobs instead."
        return load_report(watch, title, runs, drawn, note=note)

    return await guarded(session, "contamination", title, 7 if references is None else 12, body)


async def compare(runs: Sequence[JobRun], references: References | None) -> None:
    """Add a finding to every job whose picture is not that of its request.

    Where the service says `exact` of both, the bytes must be equal; else the pictures must be close. A job without
    a reference is only compared with the others: different requests must not give one picture.
    """
    known = references if references is not None else References()
    without: list[JobRun] = []
    for run in runs:
        own = known.get(run.request)
        if own is None:
            without.append(run)
        elif run.sha256 is not None and run.sha256 != own.sha256:
            await asyncio.to_thread(_judge, run, own, known, runs)
    _find_identical(without)
    _find_unequal(without)


def _judge(run: JobRun, own: Reference, references: References, runs: Sequence[JobRun]) -> None:
    """Say whose picture it is, if it is not that of the job's own reference."""
    at_the_time, earlier = _others(run, own, references, runs)
    right = {**at_the_time, run.job_id: references.fingerprint(own)}
    is_exact = own.determinism == "exact" and _is_exact(run)
    try:
        match = identify(
            run.picture or b"",
            run.job_id,
            right,
            earlier=earlier,
            tolerance=0.0 if is_exact else ROUNDING,
        )
    except UnreadablePictureError as error:
        # What came with the job was judged when it was collected.
        run.found_once(Fault.INVALID_PICTURE, str(error))
        return
    asked = f"Asked for was {own.wish}, as drawn alone by the job {own.job_id}."
    if match.kind is MatchKind.IDENTICAL and is_exact:
        run.found(
            Fault.WRONG_PICTURE,
            f"The pixels are those of the reference, but the file is not, though the service calls it exact. {asked}",
        )
    elif not match.is_good:
        run.found(_FAULTS.get(match.kind, Fault.WRONG_PICTURE), f"{match.sentence} {asked}")


def _others(
    run: JobRun, own: Reference, references: References, runs: Sequence[JobRun]
) -> tuple[dict[str, Fingerprint], dict[str, Fingerprint]]:
    """Return the right pictures of jobs that ran at the same time, and of those that had ended before, by job id."""
    by_key = {reference.key: reference for reference in references if reference.key != own.key}
    at_the_time: dict[str, Fingerprint] = {}
    earlier: dict[str, Fingerprint] = {}
    for other in runs:
        reference = by_key.get(key_of(other.request))
        if reference is None or other is run:
            continue
        if _overlap(other, run):
            at_the_time[other.job_id] = references.fingerprint(reference)
            by_key.pop(reference.key)
        elif _ended_before(other, run):
            earlier[other.job_id] = references.fingerprint(reference)
    earlier |= {reference.job_id: references.fingerprint(reference) for reference in by_key.values()}
    return at_the_time, earlier


def _find_identical(runs: Sequence[JobRun]) -> None:
    """Find jobs with different requests and the very same picture, where no reference tells whose it is."""
    first: dict[str, JobRun] = {}
    for run in runs:
        if run.sha256 is None:
            continue
        other = first.setdefault(run.sha256, run)
        if key_of(other.request) == key_of(run.request):
            continue
        if _ended_before(other, run):
            whose = "its id" if other.job_id == run.job_id else f"the job {other.job_id}"
            run.found(Fault.STALE_PICTURE, f"The job got the very same picture as {whose} had got for another request.")
        else:
            sentence = f"The job got the very same picture as the job {other.job_id}, which asked for another."
            run.found(Fault.SWAPPED_PICTURE, sentence)


def _find_unequal(runs: Sequence[JobRun]) -> None:
    """Find jobs with the same request and other bytes, though the service calls both exact."""
    first: dict[str, JobRun] = {}
    for run in runs:
        if run.sha256 is None or not _is_exact(run):
            continue
        other = first.setdefault(key_of(run.request), run)
        if other.sha256 != run.sha256:
            sentence = f"The job {other.job_id} got other bytes for the same request, though both are called exact."
            run.found(Fault.WRONG_PICTURE, sentence)


def _demand_effect(runs: Sequence[JobRun]) -> None:
    """Demand that an adapter changes the picture: one that does nothing would not be seen to leak either."""
    for run in runs:
        if not run.request.lora_path or run.sha256 is None or not run.good:
            continue
        base = key_of(run.request.model_copy(update={"lora_path": None}))
        same = next((one for one in runs if key_of(one.request) == base and one.sha256 == run.sha256), None)
        if same is not None:
            run.found(
                Fault.WRONG_PICTURE,
                f"The adapter {run.request.lora_path!r} changed nothing: the job {same.job_id} without it got the "
                "same bytes.",
            )


def _in_orders_that_leak(watch: Watch) -> list[InferenceRequest]:
    adapter = next((adapter for adapter in watch.session.adapters if adapter), None)
    return [
        watch.request(seed=ORDER_SEED, label="before"),
        watch.request(seed=ORDER_SEED, label="between", lora_path=adapter)
        if adapter
        else watch.request(seed=ORDER_SEED, label="between", prompt=_FIRST_WISH),
        watch.request(seed=ORDER_SEED, label="after"),
        watch.request(seed=ORDER_SEED + 1, label="other"),
        watch.request(seed=ORDER_SEED, label="again"),
    ]


def _reused(watch: Watch) -> list[InferenceRequest]:
    first = watch.request(seed=REUSE_SEED, label="reused", prompt=_FIRST_WISH)
    return [first, first.model_copy(update={"prompt": _SECOND_WISH})]


def _overlap(one: JobRun, other: JobRun) -> bool:
    if one.trace is None or other.trace is None:
        return False
    return not _ended_before(one, other) and not _ended_before(other, one)


def _ended_before(one: JobRun, other: JobRun) -> bool:
    if one.trace is None or other.trace is None or one.trace.final_s is None:
        return False
    return one.trace.final_s <= other.trace.submitted_s


def _is_exact(run: JobRun) -> bool:
    return run.status is not None and run.status.determinism == "exact"
