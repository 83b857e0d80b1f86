"""The callbacks of a whole call of the kit, looked at once more at its end: none missing, double, or a stranger's."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from stress.checks.callbacks import content_faults, duplicate_faults
from stress.checks.guard import CheckSkipped, guarded
from stress.checks.inbox import LocalInbox
from stress.checks.jobs import Watch
from stress.checks.outcome import CheckReport, Fault, Finding, JobTrace, Verdict
from stress.checks.session import Session
from stress.errors import ServiceError
from stress.receiver.entries import CallbackEntry, EntryKind

NAME = "late-callbacks"
TITLE = "One callback for every job"
MOST_ASKED = 100
"""Unknown ids that the service is asked about."""


async def check_late_callbacks(session: Session, reports: Sequence[CheckReport]) -> CheckReport:
    """Look at all callbacks of the jobs in `reports` once more, and find what those reports do not say.

    That is: a delivered callback that never arrived, one that came after its check had ended and is a second one or
    says what is not so, and callbacks of ids that were refused, or that nobody submitted in this session. A receiver
    elsewhere may serve others at the same time, so there strangers are only noted.
    """

    async def body(watch: Watch) -> CheckReport:
        jobs = _by_id(trace for report in reports for trace in report.jobs if trace.accepted)
        if not jobs:
            raise CheckSkipped("No job was accepted by the checks before, so there are no callbacks to look at.")
        # A skipped check may not know all jobs that had its ids: one ended before it could be caught under way.
        whole = [report for report in reports if report.verdict is not Verdict.SKIPPED]
        judged = _by_id(trace for report in whole for trace in report.jobs if trace.accepted)
        await asyncio.sleep(session.budgets.quiet_s)
        entries = await session.inbox.entries()
        found = [
            *_missing(session, jobs, entries),
            *surplus(judged, entries),
            *_wrong(session, judged, entries),
            *_refused(session, entries),
        ]
        strangers = await _strangers(session, jobs, entries)
        note = f"Looked at {len(entries)} callback(s) of {sum(map(len, jobs.values()))} job(s)."
        if strangers and not isinstance(session.inbox, LocalInbox):
            note += f" {len(strangers)} more have ids of others, who may use the same receiver."
        elif strangers and session.ids.unsure_without_id:
            note += f" {len(strangers)} more have unknown ids: a submission whose answer was lost may have got them."
        else:
            found += strangers
        known = {(finding.fault, finding.job_id) for report in reports for finding in report.findings}
        # Every repeat of a bad callback is as bad as the first one.
        first = {(finding.fault, finding.job_id): finding for finding in reversed(found)}
        new = [finding for key, finding in reversed(first.items()) if key not in known]
        figures = {"callbacks": float(len(entries)), "strangers": float(len(strangers))}
        return watch.report(NAME, TITLE, [], findings=new, figures=figures, note=note)

    return await guarded(session, NAME, TITLE, 0, body)


def surplus(jobs: Mapping[str, Sequence[JobTrace]], entries: Iterable[CallbackEntry]) -> list[Finding]:
    """Find jobs with more callbacks than they may have; an id that was used again has one for each of its jobs."""
    arrived = _by_job(entries)
    found = []
    for job_id, traces in jobs.items():
        own = arrived[job_id]
        if len(traces) == 1:
            status = traces[0].status
            found += duplicate_faults(job_id, own, status.callback if status else None)[:1]
            continue
        identified = {entry.webhook_id for entry in own if entry.webhook_id is not None}
        deliveries = len(identified) + sum(entry.webhook_id is None and entry.was_accepted for entry in own)
        if deliveries > len(traces) or any(entry.kind is EntryKind.DUPLICATE for entry in own):
            sentence = f"{len(own)} callbacks arrived for the {len(traces)} jobs that had this id one after the other."
            found.append(Finding(fault=Fault.DUPLICATE_CALLBACK, sentence=sentence, job_id=job_id))
    return found


def _wrong(
    session: Session, jobs: Mapping[str, Sequence[JobTrace]], entries: Iterable[CallbackEntry]
) -> Iterable[Finding]:
    """Find what is wrong with callbacks that their job's check did not see any more."""
    arrived = _by_job(entry for entry in entries if entry.received_at >= session.began)
    for job_id, traces in jobs.items():
        status = traces[0].status
        # Of an id that was used again nobody can tell which of its jobs a callback is of.
        if len(traces) > 1 or status is None or not status.is_final:
            continue
        seen, late = arrived[job_id][: traces[0].callbacks], arrived[job_id][traces[0].callbacks :]
        # A check may have given its job another secret than the receiver's, to see what comes of that.
        secret_was_right = bool(seen) and all(entry.secret_ok is not False for entry in seen)
        for entry in late:
            yield from content_faults(job_id, status, entry, _expiry_of(traces[0]))
            if entry.secret_ok is False and secret_was_right:
                sentence = "The callback's X-Callback-Secret is missing or wrong; it came after its check had ended."
                yield Finding(fault=Fault.WRONG_SECRET, sentence=sentence, job_id=job_id)
            rendered = status.sha256 or (traces[0].picture.sha256 if traces[0].picture else None)
            if entry.sha256 is not None and rendered is not None and entry.sha256 != rendered:
                sentence = (
                    f"A callback that came after its check had ended carries another picture ({entry.sha256[:12]}, "
                    f"by its SHA-256) than the job has ({rendered[:12]})."
                )
                yield Finding(fault=Fault.CHANGED_BYTES, sentence=sentence, job_id=job_id)


def _expiry_of(trace: JobTrace) -> datetime | None:
    expiry = trace.request.get("expiry")
    return datetime.fromisoformat(expiry) if isinstance(expiry, str) else None


def _missing(
    session: Session, jobs: Mapping[str, Sequence[JobTrace]], entries: Iterable[CallbackEntry]
) -> list[Finding]:
    arrived = Counter(entry.job_id for entry in entries)
    found = []
    for job_id, traces in jobs.items():
        sent = [trace for trace in traces if _was_sent_here(session, trace)]
        if arrived[job_id] < len(sent):
            sentence = f"The service says that the callback was delivered; {arrived[job_id]} of {len(sent)} arrived."
            found.append(Finding(fault=Fault.MISSING_CALLBACK, sentence=sentence, job_id=job_id))
    return found


def _was_sent_here(session: Session, trace: JobTrace) -> bool:
    report = trace.status.callback if trace.status else None
    here = trace.request.get("callback_url") == session.inbox.callback_url
    # What had not arrived by the end of its own check is that check's finding, if any; a receiver may also have
    # forgotten the oldest, which did arrive.
    return here and report is not None and report.status == "delivered" and trace.callbacks == 0


def _refused(session: Session, entries: Iterable[CallbackEntry]) -> list[Finding]:
    refused = [entry for entry in entries if session.ids.was_refused(entry.job_id)]
    return _unexpected(session, refused, "a submission that was refused")


async def _strangers(
    session: Session, jobs: Mapping[str, Sequence[JobTrace]], entries: Iterable[CallbackEntry]
) -> list[Finding]:
    ids = session.ids
    strange = [entry for entry in entries if not ids.may_call_back(entry.job_id) and not ids.was_refused(entry.job_id)]
    # A callback that an earlier call of the kit refused is rightly repeated, to the same address.
    statuses = (trace.status for traces in jobs.values() for trace in traces)
    since = min((status.queued_at for status in statuses if status and status.queued_at), default=None)
    asked = sorted({entry.job_id for entry in strange})[:MOST_ASKED]
    earlier = {job_id for job_id in asked if await _is_from_before(session, job_id, since)}
    strange = [entry for entry in strange if entry.job_id not in earlier]
    return _unexpected(session, strange, "an id that the kit never submitted")


async def _is_from_before(session: Session, job_id: str, since: datetime | None) -> bool:
    """Whether the service knows this job and had it before the first of this session, by its own clock."""
    with suppress(ServiceError, ValueError):
        queued_at = (await session.client.status(job_id)).queued_at
        return since is not None and queued_at is not None and queued_at < since
    return False


def _unexpected(session: Session, entries: Iterable[CallbackEntry], whose: str) -> list[Finding]:
    # A receiver elsewhere may remember the callbacks of earlier calls of the kit.
    counts = Counter(entry.job_id for entry in entries if entry.received_at >= session.began)
    return [
        Finding(fault=Fault.UNEXPECTED_CALLBACK, sentence=f"{count} callback(s) arrived for {whose}.", job_id=job_id)
        for job_id, count in counts.items()
    ]


def _by_job(entries: Iterable[CallbackEntry]) -> defaultdict[str, list[CallbackEntry]]:
    arrived: defaultdict[str, list[CallbackEntry]] = defaultdict(list)
    for entry in entries:
        arrived[entry.job_id].append(entry)
    return arrived


def _by_id(traces: Iterable[JobTrace]) -> dict[str, list[JobTrace]]:
    jobs: defaultdict[str, list[JobTrace]] = defaultdict(list)
    for trace in traces:
        jobs[trace.job_id].append(trace)
    return dict(jobs)
