"""Negative checks of callbacks: jobs that expired, and targets that are unreachable, failing, redirecting or deny."""

import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from stress.checks.callbacks import UNDELIVERED, repeat_faults, secret_fault
from stress.checks.features import features_of
from stress.checks.guard import CheckSkipped, guarded
from stress.checks.inbox import FaultyInbox
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import CheckReport, Fault
from stress.checks.session import Session
from stress.checks.telling import metadata_line
from stress.wire import CallbackReport, InferenceRequest, JobState

CHEAP: dict[str, Any] = {"width": 256, "height": 256, "num_inference_steps": 4}
"""What a job asks for where the picture is not the point."""
NO_MISBEHAVIOUR = (
    "This receiver cannot be told to misbehave. Use the one that the kit starts, or one of this kit's elsewhere with "
    "its control token in ASYNC_CALLBACK_CONTROL_TOKEN."
)


async def check_expired(session: Session) -> CheckReport:
    """A job that is expired when it is submitted is accepted and rendered, and no callback is sent."""
    name, title = "expired", "A job that has expired already is rendered, and nothing is sent"

    async def body(watch: Watch) -> CheckReport:
        request = watch.request(seed=11, **CHEAP, expiry=datetime.now(UTC) - timedelta(hours=1))
        run = await watch.submit(request)
        await watch.await_final(run)
        note = None
        if run.status is not None and run.status.is_final:
            if run.status.error_code == "expired":
                note = "This service does not render what has expired already."
            else:
                _must_be_completed(run)
            report = run.status.callback
            if report is not None and report.status != "expired":
                run.found(Fault.WRONG_CALLBACK_SECTION, f"callback.status is {report.status!r}, expected 'expired'.")
            session.progress.line(metadata_line(report))
            for _ in await session.inbox.wait_for(run.job_id, timeout_s=session.budgets.quiet_s):
                run.found_once(Fault.CALLBACK_AFTER_EXPIRY, "A callback was sent for a job that had expired.")
        await watch.collect(run, callback=False)
        return watch.report(name, title, [run], note=note)

    return await guarded(session, name, title, 1, body)


async def check_unreachable_target(session: Session) -> CheckReport:
    """A callback to a port where nobody listens fails with an error and no status code; the job stays completed."""
    name, title = "unreachable-target", "A callback that nobody takes fails with an error"

    async def body(watch: Watch) -> CheckReport:
        host = urlsplit(session.inbox.callback_url).hostname or "127.0.0.1"
        shown = f"[{host}]" if ":" in host else host
        request = watch.request(seed=12, **CHEAP, callback_url=f"http://{shown}:{_free_port()}/callback")
        run = await _final_job(watch, request)
        report = _section(run)
        if report is not None:
            wrong = []
            if report.status != "failed":
                wrong.append(f"status is {report.status!r}, expected 'failed'")
            if not report.error:
                wrong.append("`error` does not say why")
            if report.status_code is not None:
                wrong.append(f"there is a status_code ({report.status_code}) although nobody answered")
            _found_in_section(run, wrong)
        await watch.collect(run, callback=False)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def check_failing_target(session: Session) -> CheckReport:
    """A callback that is answered 500 fails with that code; a service that tries again sends a repeat, and the same."""
    name, title = "failing-target", "A callback that is answered 500 fails, and is repeated as such"

    async def body(watch: Watch) -> CheckReport:
        request = watch.request(seed=13, **CHEAP)
        await _misbehave(session, request, answer_status=500)
        run = await _final_job(watch, request)
        note = await _check_failed_with(watch, run, 500)
        await watch.collect(run, callback=False)
        return watch.report(name, title, [run], note=note)

    return await guarded(session, name, title, 1, body)


async def check_redirecting_target(session: Session) -> CheckReport:
    """A callback that is answered with a redirect fails with that code: the redirect is not followed."""
    name, title = "redirecting-target", "A callback does not follow a redirect"

    async def body(watch: Watch) -> CheckReport:
        request = watch.request(seed=14, **CHEAP)
        await _misbehave(session, request, redirect_to=f"{session.inbox.callback_url}?redirected=1")
        run = await _final_job(watch, request)
        report = _section(run)
        if report is not None and _was_followed(report):
            if not (await features_of(session)).complete:
                raise CheckSkipped("This service follows redirects, as the protocol's first form left open.")
            run.found(Fault.WRONG_CALLBACK_SECTION, "The redirect was followed: the callback counts as delivered.")
            await watch.collect(run, callback=False)
            return watch.report(name, title, [run])
        note = await _check_failed_with(watch, run, 307)
        await watch.collect(run, callback=False)
        return watch.report(name, title, [run], note=note)

    return await guarded(session, name, title, 1, body)


async def check_wrong_secret(session: Session) -> CheckReport:
    """A callback with another secret than the receiver's is rejected with 401, and the service says so."""
    name, title = "wrong-secret", "A callback with a wrong secret is rejected, and the service says so"

    async def body(watch: Watch) -> CheckReport:
        given = f"not-the-secret-{uuid4().hex}"
        run = await _final_job(watch, watch.request(seed=15, **CHEAP, callback_secret=given))
        is_final = run.status is not None and run.status.is_final
        timeout_s = session.budgets.callback_s if is_final else 0.0
        entries = await session.inbox.wait_for(run.job_id, timeout_s=timeout_s)
        if entries and entries[0].secret_ok is None:
            raise CheckSkipped("This receiver has no secret of its own, so it rejects nothing.")
        if not entries and is_final:
            run.found(Fault.MISSING_CALLBACK, "No callback arrived, not even one to reject.")
        for entry in entries[:1]:
            wrong = secret_fault(run.request, entry)
            if wrong is not None:
                run.found(Fault.WRONG_SECRET, wrong)
            elif entry.answered_status != 401:
                run.found(Fault.KIT, f"The receiver answered {entry.answered_status} to a wrong secret, not 401.")
        report = _section(run)
        if report is not None and run.good:
            _found_in_section(run, _not_failed_with(report, 401))
        await watch.collect(run, callback=False)
        return watch.report(name, title, [run])

    return await guarded(session, name, title, 1, body)


async def _misbehave(
    session: Session, request: InferenceRequest, *, answer_status: int | None = None, redirect_to: str | None = None
) -> None:
    inbox, job_id = session.inbox, request.job_id or ""
    if not isinstance(inbox, FaultyInbox) or not await inbox.misbehave(
        job_id, answer_status=answer_status, redirect_to=redirect_to
    ):
        raise CheckSkipped(NO_MISBEHAVIOUR)


async def _final_job(watch: Watch, request: InferenceRequest) -> JobRun:
    """Follow a job whose picture must be there, whatever becomes of its callback."""
    run = await watch.submit(request)
    await watch.await_final(run)
    if run.status is not None and run.status.is_final:
        _must_be_completed(run)
    return run


def _must_be_completed(run: JobRun) -> None:
    if run.status is not None and run.status.status is not JobState.COMPLETED:
        run.found(Fault.FAILED_JOB, f"The job ended as {run.status.status} ({run.status.error}), expected completed.")


def _section(run: JobRun) -> CallbackReport | None:
    return run.status.callback if run.status is not None and run.status.is_final else None


def _found_in_section(run: JobRun, wrong: list[str]) -> None:
    for one in wrong:
        run.found(Fault.WRONG_CALLBACK_SECTION, f"The callback section is wrong: {one}.")


def _not_failed_with(report: CallbackReport, status_code: int) -> list[str]:
    wrong = []
    if report.status not in UNDELIVERED:
        wrong.append(f"status is {report.status!r}, expected 'failed'")
    if report.status_code != status_code:
        wrong.append(f"status_code is {report.status_code}, the receiver answered {status_code}")
    return wrong


def _was_followed(report: CallbackReport) -> bool:
    # One attempt that was answered with a redirect cannot have been delivered otherwise.
    return report.status == "delivered" and (report.attempts or 1) == 1


async def _check_failed_with(watch: Watch, run: JobRun, status_code: int) -> str | None:
    """Check a job whose first callback was answered so, and the repeat of it. Returns a note if there is none."""
    report = _section(run)
    if report is None:
        return None
    # The repeat may have been delivered before the first poll saw the failure.
    repeated = report.status == "delivered" and (report.attempts or 1) > 1
    if not repeated:
        _found_in_section(run, _not_failed_with(report, status_code))
    repeats = repeated or report.final is False
    count, budget_s = (2 if repeats else 1), watch.session.budgets.callback_s
    entries = await watch.session.inbox.wait_for(run.job_id, count=count, timeout_s=budget_s)
    run.entries = entries
    run.update(callbacks=len(entries))
    if len(entries) < count:
        expected = "a repeat of the callback" if entries else "the callback"
        run.found(Fault.MISSING_CALLBACK, f"The service announced {expected}; none arrived within {budget_s:g} s.")
        return None
    if not repeats:
        await watch.look_for_duplicates(run)
        return "This service sends a callback once."
    run.findings += repeat_faults(run.job_id, *entries[:2])
    settled = await watch.section_when(run, lambda now: now.status == "delivered", timeout_s=budget_s)
    if settled is not None and settled.status != "delivered":
        wrong = f"status is {settled.status!r} after the repeat was answered with success, expected 'delivered'"
        _found_in_section(run, [wrong])
    # Whoever sends twice does so within moments of the repeat that was taken.
    await watch.look_for_duplicates(run)
    return None


def _free_port() -> int:
    """Return a port on which nobody listens here: it was free a moment ago."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
