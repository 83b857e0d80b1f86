"""Negative checks of jobs: ids in use, double submissions, cancellation, redelivery, results that are not there yet."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

from stress.checks.callbacks import repeat_faults
from stress.checks.features import Features, features_of
from stress.checks.guard import CheckSkipped, guarded
from stress.checks.jobs import JobRun, Watch
from stress.checks.negative_callbacks import CHEAP
from stress.checks.outcome import CheckReport, Fault
from stress.checks.session import Session
from stress.errors import (
    AnswerError,
    ConflictError,
    NotFoundError,
    PictureNotFoundError,
    ServiceError,
    UnexpectedAnswerError,
)
from stress.wire import JobState, JobStatus

LONG_STEPS = 100
"""The most that the protocol allows: long enough to be caught under way; the job is cancelled afterwards."""
_EARLY_S = 5.0
"""By how much a job may seem to be ended before its limit: start and end may be of the clocks of two machines."""
TOO_FAST = "The job was over before the check could catch it under way, so nothing can be said."
_QUEUED_TRIES = 6
_ABANDON_S = 2.0
_SUBMISSIONS = 3


async def check_id_in_use(session: Session) -> CheckReport:
    """An id whose job is live is refused for another body with 409."""
    name, title = "id-in-use", "A live job's id is refused for another request (409)"

    async def body(watch: Watch) -> CheckReport:
        async with _live_job(watch, seed=21) as run:
            if run.accepted:
                await _must_be_live(watch, run)
                await _submit_another(watch, run)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def check_same_submission(session: Session) -> CheckReport:
    """The same id with the same body, while the job is live, is the same job: answered 200, rendered once."""
    name, title = "same-submission", "A live job that is submitted again stays one job (200)"

    async def body(watch: Watch) -> CheckReport:
        features = await features_of(session)
        async with _live_job(watch, seed=23) as run:
            if run.accepted:
                await _must_be_live(watch, run)
                await _submit_again(watch, run, features)
        if run.accepted and run.good:
            await watch.look_for_duplicates(run)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def check_id_reuse(session: Session) -> CheckReport:
    """The id of a finished job can be used again, and the new job gets a picture and a callback of its own."""
    name, title = "id-reuse", "A finished job's id can be used again, for another picture"

    async def body(watch: Watch) -> CheckReport:
        first = await watch.run(watch.request(seed=29, **CHEAP), label="first")
        runs = [first]
        if first.good:
            again = await watch.run(watch.request(seed=30, **CHEAP, job_id=first.job_id), label="again")
            runs.append(again)
            if again.sha256 is not None and again.sha256 == first.sha256:
                again.found(Fault.STALE_PICTURE, "The new job got the picture of the earlier job with the same id.")
        return watch.report(name, title, runs)

    return await guarded(session, name, title, 2, body)


async def check_duplicate_submission(session: Session) -> CheckReport:
    """One request that arrives several times at once, under one Idempotency-Key, becomes one job."""
    name, title = "duplicate-submission", "A request that arrives three times under one Idempotency-Key is one job"

    async def body(watch: Watch) -> CheckReport:
        features = await features_of(session)
        request, key = watch.request(seed=24, **CHEAP, job_id=None), uuid4().hex
        runs = await asyncio.gather(*(watch.submit(request, idempotency_key=key) for _ in range(_SUBMISSIONS)))
        ids = sorted({run.job_id for run in runs if run.accepted})
        distinct = [next(run for run in runs if run.job_id == job_id) for job_id in ids]
        if len(ids) > 1:
            if not features.complete:
                raise CheckSkipped("This service does not know the header Idempotency-Key.")
            distinct[0].found(Fault.DOUBLE_JOB, f"One Idempotency-Key became {len(ids)} jobs: {', '.join(ids)}.")
        for run in distinct:
            await watch.follow(run)
            await watch.collect(run)
        for run in distinct[:1]:
            await watch.look_for_duplicates(run)
        refused = [run for run in runs if not run.accepted]
        return watch.report(name, title, [*distinct, *refused])

    return await guarded(session, name, title, 1, body)


async def check_early_result(session: Session) -> CheckReport:
    """Before a job is completed its picture is not there: 404 on both addresses."""
    name, title = "early-result", "No picture is served before its job is completed (404)"

    async def body(watch: Watch) -> CheckReport:
        async with _live_job(watch, seed=25) as run:
            for address in ("result", "image") if run.accepted else ():
                served = await _picture_is_served(session, run, address)
                await _must_be_live(watch, run)
                if served:
                    run.found(Fault.WRONG_ANSWER, f"The {address} address served a picture before the job had ended.")
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def check_cancel_running(session: Session) -> CheckReport:
    """A running job that is cancelled ends as failed, without a picture, and its callback says so."""
    name, title = "cancel-running", "A running job can be cancelled"

    async def body(watch: Watch) -> CheckReport:
        await _must_offer_cancel(session)
        run = await watch.submit(watch.request(seed=26, num_inference_steps=LONG_STEPS))
        await _until_processing(watch, run)
        await _cancel_and_check(watch, run)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def check_cancel_queued(session: Session) -> CheckReport:
    """A queued job that is cancelled ends as failed without being rendered, and its callback says so."""
    name, title = "cancel-queued", "A queued job can be cancelled"

    async def body(watch: Watch) -> CheckReport:
        await _must_offer_cancel(session)
        runs: list[JobRun] = []
        queued: JobRun | None = None
        features = Features(cancel=True, redeliver=False)
        try:
            queued = await _queued_job(watch, runs)
            if queued is not None:
                await _cancel_and_check(watch, queued)
        except asyncio.CancelledError:
            await _abandon(watch, runs, features)
            runs = []
            raise
        finally:
            for run in runs:
                if run is not queued:
                    await _end(watch, run, features)
        if queued is None and all(run.good for run in runs):
            raise CheckSkipped(f"The service ran {_QUEUED_TRIES} jobs at once, so none was queued.")
        return watch.report(name, title, runs)

    return await guarded(session, name, title, 2, body)


async def check_redeliver(session: Session) -> CheckReport:
    """A callback that is asked for again comes once more: the same id, a higher attempt, the same bytes."""
    name, title = "redeliver", "A callback can be asked for again"

    async def body(watch: Watch) -> CheckReport:
        if not (await features_of(session)).redeliver:
            raise CheckSkipped("This service offers no redelivery.")
        run = await watch.run(watch.request(seed=27, **CHEAP))
        if run.good and run.entries:
            await _ask_again(watch, run)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def check_job_timeout(session: Session) -> CheckReport:
    """A job that takes longer than the service allows ends as timeout, and its callback says failed."""
    name, title = "job-timeout", "A job that takes too long is ended (timeout)"

    async def body(watch: Watch) -> CheckReport:
        if session.job_timeout_s is None:
            raise CheckSkipped("No way to reach the service's time limit. Set a short one there, and tell the kit.")
        # The limit is of rendering: the rest is for waiting.
        least_s = session.job_timeout_s + session.budgets.base_s
        wish = watch.request(seed=28, num_inference_steps=LONG_STEPS)
        expiry = watch.expiry([wish], least_s=least_s + session.budgets.callback_s)
        run = await watch.submit(wish.model_copy(update={"expiry": expiry}))
        await watch.await_final(run, least_s=least_s)
        status = run.status
        if status is not None and status.is_final:
            if status.status is JobState.COMPLETED:
                raise CheckSkipped(f"The device rendered {LONG_STEPS} steps within {session.job_timeout_s:g} s.")
            if status.status is not JobState.TIMEOUT:
                run.found(Fault.WRONG_ANSWER, f"The job ended as {status.status} ({status.error}), expected timeout.")
            elif wrong := limit_fault(status, session.job_timeout_s, late_s=session.budgets.base_s):
                run.found(Fault.WRONG_ANSWER, wrong)
            await _must_have_failed(watch, run)
        await watch.collect(run, callback=False)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


def limit_fault(status: JobStatus, limit_s: float, *, late_s: float) -> str | None:
    """Say that a job which timed out had another limit than the kit was told; None if its record does not show it.

    It ends with its step, which may take up to `late_s`.
    """
    ended_at = status.failed_at or status.completed_at
    if status.started_at is None or ended_at is None:
        return None
    ran_s = (ended_at - status.started_at).total_seconds()
    if limit_s - min(_EARLY_S, limit_s / 2) <= ran_s <= limit_s + late_s:
        return None
    return f"The job was ended {ran_s:.1f} s after its start; the limit that the kit was told is {limit_s:g} s."


@asynccontextmanager
async def _live_job(watch: Watch, seed: int) -> AsyncIterator[JobRun]:
    """A job that is long under way; in the end it is cancelled, or waited for where the service cannot cancel."""
    features = await features_of(watch.session)
    steps = LONG_STEPS if features.cancel else watch.session.asking.steps
    run = await watch.submit(watch.request(seed=seed, num_inference_steps=steps))
    try:
        yield run
    except asyncio.CancelledError:
        await _abandon(watch, [run], features)
        raise
    except BaseException:
        await _end(watch, run, features)
        raise
    await _end(watch, run, features)


async def _abandon(watch: Watch, runs: Iterable[JobRun], features: Features) -> None:
    """Cancel the jobs without waiting for their end: who interrupts the kit does not want to wait."""
    with suppress(ServiceError, TimeoutError):
        async with asyncio.timeout(_ABANDON_S):
            for run in runs:
                if run.accepted and features.cancel:
                    await watch.session.client.cancel(run.job_id)


async def _end(watch: Watch, run: JobRun, features: Features) -> None:
    if run.accepted:
        if features.cancel:
            with suppress(AnswerError):
                await watch.session.ask(lambda: watch.session.client.cancel(run.job_id))
        await watch.await_final(run)
    # A cancelled job's callback says failed, which is not what this check is about.
    await watch.collect(run, callback=False)


async def _must_be_live(watch: Watch, run: JobRun) -> None:
    if run.accepted and (await watch.read(run)).is_final:
        raise CheckSkipped(TOO_FAST)


async def _submit_another(watch: Watch, run: JobRun) -> None:
    """Ask for something else under the id of a live job."""
    other = watch.request(seed=22, job_id=run.job_id, prompt=f"{run.request.prompt}, in autumn")
    try:
        await watch.session.ask(lambda: watch.session.submit(other))
    except ConflictError:
        return
    except ServiceError as error:
        run.found(Fault.WRONG_ANSWER, f"Expected HTTP 409. {error}")
        return
    await _must_not_have_ended(watch, run)
    run.found(Fault.WRONG_ANSWER, "Another request was accepted under the id of a live job; expected 409.")


async def _submit_again(watch: Watch, run: JobRun, features: Features) -> None:
    """Ask for the same under the id of a live job."""
    session = watch.session
    before = await session.ask(lambda: session.client.status(run.job_id))
    try:
        answer = await session.ask(lambda: session.submit(run.request))
    except ConflictError as error:
        if not features.complete:
            raise CheckSkipped("This service refuses every live id with 409, as the first form did.") from error
        run.found(Fault.WRONG_ANSWER, f"Expected HTTP 200 and the same job. {error}")
        return
    except ServiceError as error:
        run.found(Fault.WRONG_ANSWER, f"Expected HTTP 200 and the same job. {error}")
        return
    if answer.job_id != run.job_id:
        run.found(Fault.WRONG_JOB_ID, f"The second answer is about another job: {answer.job_id!r}.")
    if (await session.ask(lambda: session.client.status(run.job_id))).queued_at != before.queued_at:
        await _must_not_have_ended(watch, run)
        run.found(Fault.DOUBLE_JOB, "The second submission made a new job: its `queued_at` is another.")


async def _must_not_have_ended(watch: Watch, run: JobRun) -> None:
    # An id is free again once its job's callback was sent; then a new job under it is right.
    if await watch.session.inbox.entries_for(run.job_id):
        raise CheckSkipped(TOO_FAST)


async def _must_offer_cancel(session: Session) -> None:
    if not (await features_of(session)).cancel:
        raise CheckSkipped("This service offers no cancellation.")


async def _until_processing(watch: Watch, run: JobRun) -> None:
    try:
        async with asyncio.timeout(watch.budget_s(run.request)):
            while run.accepted and (await watch.read(run)).status is JobState.QUEUED:  # noqa: ASYNC110 - it is remote
                await asyncio.sleep(0.05)
    except TimeoutError:
        run.found(Fault.LATE_JOB, f"The job was still queued after {watch.budget_s(run.request):.0f} s.")


async def _queued_job(watch: Watch, runs: list[JobRun]) -> JobRun | None:
    """Submit long jobs, adding them to `runs`, until one has to wait for the others; None if all run."""
    for seed in range(30, 30 + _QUEUED_TRIES):
        run = await watch.submit(watch.request(seed=seed, num_inference_steps=LONG_STEPS))
        runs.append(run)
        if not run.accepted:
            return None
        # The first is queued for a moment even on an idle service; behind others that run, a job stays so.
        if len(runs) > 1 and (await watch.read(run)).status is JobState.QUEUED:
            return run
        await _until_processing(watch, run)
    return None


async def _cancel_and_check(watch: Watch, run: JobRun) -> None:
    if run.accepted and run.good:
        try:
            await watch.session.ask(lambda: watch.session.client.cancel(run.job_id))
        except ConflictError as error:
            raise CheckSkipped(TOO_FAST) from error
        except ServiceError as error:
            run.found(Fault.WRONG_ANSWER, f"The job could not be cancelled. {error}")
    await watch.await_final(run)
    if run.status is not None and run.status.is_final and run.good:
        if run.status.status is not JobState.FAILED:
            run.found(Fault.WRONG_ANSWER, f"The cancelled job ended as {run.status.status}, expected failed.")
        await _must_have_failed(watch, run)
    await watch.collect(run, callback=False)


async def _must_have_failed(watch: Watch, run: JobRun) -> None:
    """Demand an error, no picture, and a callback that says failed."""
    if run.status is not None and not run.status.error:
        run.found(Fault.WRONG_ANSWER, "The status of the failed job has no `error`.")
    for address in ("result", "image"):
        if await _picture_is_served(watch.session, run, address):
            run.found(Fault.WRONG_ANSWER, f"The {address} address serves a picture of a job that has none.")
    await watch.collect_callbacks(run)


async def _picture_is_served(session: Session, run: JobRun, address: str) -> bool:
    try:
        await session.ask(lambda: (session.client.result if address == "result" else session.client.image)(run.job_id))
    except PictureNotFoundError:
        return False
    except ServiceError as error:
        run.found(Fault.WRONG_ANSWER, f"Expected HTTP 404 for a picture that is not there. {error}")
        return False
    return True


async def _ask_again(watch: Watch, run: JobRun) -> None:
    session, first = watch.session, run.entries[-1]
    try:
        await session.ask(lambda: session.client.redeliver(run.job_id))
    except (NotFoundError, UnexpectedAnswerError) as error:
        run.found(Fault.WRONG_ANSWER, f"The service offers redelivery at its root path, and then: {error}")
        return
    except ServiceError as error:
        run.found(Fault.WRONG_ANSWER, f"The callback could not be asked for again. {error}")
        return
    count, budget_s = len(run.entries) + 1, session.budgets.callback_s
    entries = await session.inbox.wait_for(run.job_id, count=count, timeout_s=budget_s)
    if len(entries) < count:
        run.found(Fault.MISSING_CALLBACK, f"The callback that was asked for again did not come within {budget_s:g} s.")
        return
    again = entries[count - 1]
    run.findings += repeat_faults(run.job_id, first, again)
    # The section is of the first delivery until the service has recorded the second.
    recorded = again.webhook_attempt or 0
    await watch.section_when(
        run,
        lambda now: now.final is not False and (now.attempts is None or now.attempts >= recorded),
        timeout_s=session.budgets.callback_s,
    )
    await watch.look_for_duplicates(run)
