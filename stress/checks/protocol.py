"""The protocol check: one job, from the submit to its callback, against every promise that the protocol makes."""

from datetime import datetime, timedelta
from urllib.parse import urlsplit

from stress.checks.features import features_of
from stress.checks.guard import guarded
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import CheckReport, Fault
from stress.checks.session import Session
from stress.checks.telling import metadata_line
from stress.errors import ServiceError
from stress.receiver.entries import CallbackEntry
from stress.wire import JobState, JobStatus

NAME = "protocol"
TITLE = "Callback delivered before expiry"
_MOMENTS = ("queued_at", "started_at", "completed_at", "failed_at")


async def check_protocol(session: Session) -> CheckReport:
    """Submit one job, follow it to its callback, and check every answer on the way."""

    async def body(watch: Watch) -> CheckReport:
        say = session.progress.line
        say("")
        say(f"📝 {TITLE}")
        # The id is left to the service: that it makes one up is part of the protocol.
        request = watch.request(seed=session.asking.seed, job_id=None)
        run = await watch.submit(request, label="protocol")
        await _check_root(session, run)
        if run.answer is None:
            say(f"   ❌ Submission failed: {run.findings[0].sentence}")
            return watch.report(NAME, TITLE, [run])
        say(f"   ✅ Job submitted: {run.job_id}")
        say(f"   📋 Status: {run.answer.status}")
        if run.answer.message:
            say(f"   💬 Message: {run.answer.message}")
        _check_submit_answer(run)
        await watch.follow(run)
        if run.status is None or not run.status.is_final:
            say(f"   ❌ Polling failed: {run.findings[-1].sentence}")
            await watch.collect(run)
            return watch.report(NAME, TITLE, [run])
        say(f"   🎯 Final status: {run.status.status}")
        _check_record(run, run.status, both_names=(await features_of(session)).complete)
        await watch.collect(run)
        await watch.recheck([run], grace_s=session.budgets.quiet_s)
        _tell_callback(session, run)
        return watch.report(NAME, TITLE, [run])

    return await guarded(session, NAME, TITLE, 1, body)


def _tell_callback(session: Session, run: JobRun) -> None:
    say = session.progress.line
    if not run.entries:
        say("   ❌ Expected callback but none received within timeout")
        say(metadata_line(run.status.callback if run.status else None))
        return
    entry = run.entries[0]
    say("   📬 Callback received")
    say(f"      ↳ Secret header: {entry.provided_secret}")
    if entry.saved_path is not None:
        say(f"      ↳ Image stored at: {entry.saved_path}")
    _check_entry(run, entry)


async def _check_root(session: Session, run: JobRun) -> None:
    """Demand that the root path says what answers there."""
    try:
        info = await session.ask(session.client.root)
    except ServiceError as error:
        run.found(Fault.WRONG_ANSWER, f"The root path must answer with name and version. {error}")
        return
    if not info.name or not info.version:
        run.found(Fault.WRONG_ANSWER, f"The root path gives the name {info.name!r} and the version {info.version!r}.")


def _check_submit_answer(run: JobRun) -> None:
    answer = run.answer
    if answer is None:
        return
    if answer.accepted is not True:
        run.found(Fault.WRONG_ANSWER, f"The submit answer has `accepted` {answer.accepted!r}, expected true.")
    if answer.status not in {JobState.QUEUED, JobState.PROCESSING}:
        run.found(Fault.WRONG_ANSWER, f"The submit answer has the status {answer.status!r}, expected 'queued'.")
    for name, given in (("status", answer.status_url), ("result", answer.result_url)):
        expected = f"/inference/{name}/{run.job_id}"
        # A service may stand under a prefix, behind a proxy for example.
        if given is None or not urlsplit(given).path.endswith(expected):
            sentence = f"`{name}_url` of the submit answer is {given!r}, expected an address ending in {expected}."
            run.found(Fault.WRONG_ANSWER, sentence)


def _check_record(run: JobRun, status: JobStatus, *, both_names: bool) -> None:
    """Check the final record: the names of the id, moments with their offset, the size, and where the picture is."""
    # The model lets either name of the id stand for both, and keeps `id` if both were sent.
    if both_names and "id" not in (status.model_extra or {}):
        sentence = "The status must name the job as `id` and as `job_id`, so that clients of either form find theirs."
        run.found(Fault.WRONG_ANSWER, sentence)
    for name in _MOMENTS:
        moment = getattr(status, name)
        if moment is not None and not _is_utc(moment):
            run.found(Fault.WRONG_ANSWER, f"`{name}` is {moment.isoformat()}, expected UTC with its offset (+00:00).")
    _check_order(run, status)
    if status.status is JobState.COMPLETED:
        _check_size(run, status)
        if not status.result_url:
            run.found(Fault.WRONG_ANSWER, "The status of the completed job has no `result_url`.")
        if not status.image_url or not urlsplit(status.image_url).path.endswith(f"/images/{run.job_id}.png"):
            sentence = f"`image_url` is {status.image_url!r}, expected an address ending in /images/{run.job_id}.png."
            run.found(Fault.WRONG_ANSWER, sentence)


def _check_order(run: JobRun, status: JobStatus) -> None:
    if status.queued_at is None or status.completed_at is None:
        missing = "queued_at" if status.queued_at is None else "completed_at"
        run.found(Fault.WRONG_ANSWER, f"The status of a final job has no `{missing}`.")
    elif _is_utc(status.queued_at) and _is_utc(status.completed_at) and status.completed_at < status.queued_at:
        run.found(Fault.WRONG_ANSWER, "`completed_at` is before `queued_at`.")


def _check_size(run: JobRun, status: JobStatus) -> None:
    if status.width is None or status.height is None:
        return
    asked = (run.request.width, run.request.height)
    if (status.width, status.height) != asked:
        sentence = f"The record says {status.width}x{status.height}, asked was {asked[0]}x{asked[1]}."
        run.found(Fault.WRONG_ANSWER, sentence)


def _check_entry(run: JobRun, entry: CallbackEntry) -> None:
    try:
        moment: datetime | None = datetime.fromisoformat(entry.completed_at)
    except ValueError:
        moment = None
    if moment is None or not _is_utc(moment):
        sentence = f"`completed_at` of the callback is {entry.completed_at!r}, expected UTC with its offset (+00:00)."
        run.found(Fault.WRONG_ANSWER, sentence)
    if entry.has_image and not entry.image_url:
        run.found(Fault.WRONG_ANSWER, "The callback has a picture and no `image_url`.")


def _is_utc(moment: datetime) -> bool:
    return moment.utcoffset() == timedelta(0)
