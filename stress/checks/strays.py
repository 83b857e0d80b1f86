"""The callbacks of a whole call of the kit, looked at once more at its end: none missing, double, or a stranger's."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from stress.checks.callbacks import duplicate_faults
from stress.checks.guard import CheckSkipped, guarded
from stress.checks.inbox import LocalInbox
from stress.checks.jobs import Watch
from stress.checks.outcome import CheckReport, Fault, Finding, JobTrace
from stress.checks.session import Session
from stress.receiver.entries import CallbackEntry, EntryKind

OWN_PREFIX = "kit-"
"""With which the ids begin that the kit chooses: none of them is a stranger's."""


async def check_callbacks_under_load(
    session: Session, reports: Sequence[CheckReport], *, since: datetime | None = None
) -> CheckReport:
    """Look at all callbacks of the jobs in `reports` once more, and find what those reports do not say.

    That is: a delivered callback that never arrived, a second one that came after its check had ended, and callbacks
    with ids that nobody submitted (received after `since`). A receiver elsewhere may serve others at the same time,
    so there strangers are only noted.
    """
    title = "One callback for every job"

    async def body(watch: Watch) -> CheckReport:
        jobs = _by_id(trace for report in reports for trace in report.jobs if trace.accepted)
        if not jobs:
            raise CheckSkipped("No job was accepted by the checks before, so there are no callbacks to look at.")
        await asyncio.sleep(session.budgets.quiet_s)
        entries = await session.inbox.entries()
        found = [*_missing(session, jobs, entries), *surplus(jobs, entries)]
        strangers = _strangers(jobs, entries, since)
        note = f"Looked at {len(entries)} callback(s) of {sum(map(len, jobs.values()))} job(s)."
        if isinstance(session.inbox, LocalInbox):
            found += strangers
        elif strangers:
            note += f" {len(strangers)} more have ids of others, who may use the same receiver."
        known = {(finding.fault, finding.job_id) for report in reports for finding in report.findings}
        new = [finding for finding in found if (finding.fault, finding.job_id) not in known]
        figures = {"callbacks": float(len(entries)), "strangers": float(len(strangers))}
        return watch.report("callbacks-under-load", title, [], findings=new, figures=figures, note=note)

    return await guarded(session, "callbacks-under-load", title, 0, body)


def surplus(jobs: Mapping[str, Sequence[JobTrace]], entries: Iterable[CallbackEntry]) -> list[Finding]:
    """Find jobs with more callbacks than they may have; an id that was used again has one for each of its jobs."""
    arrived: defaultdict[str, list[CallbackEntry]] = defaultdict(list)
    for entry in entries:
        arrived[entry.job_id].append(entry)
    found = []
    for job_id, traces in jobs.items():
        own = arrived[job_id]
        if len(traces) == 1:
            found += duplicate_faults(job_id, own)[:1]
            continue
        identified = {entry.webhook_id for entry in own if entry.webhook_id is not None}
        deliveries = len(identified) + sum(entry.webhook_id is None and entry.was_accepted for entry in own)
        if deliveries > len(traces) or any(entry.kind is EntryKind.DUPLICATE for entry in own):
            sentence = f"{len(own)} callbacks arrived for the {len(traces)} jobs that had this id one after the other."
            found.append(Finding(fault=Fault.DUPLICATE_CALLBACK, sentence=sentence, job_id=job_id))
    return found


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


def _strangers(
    jobs: Mapping[str, Sequence[JobTrace]], entries: Iterable[CallbackEntry], since: datetime | None
) -> list[Finding]:
    strangers = Counter(
        entry.job_id
        for entry in entries
        if entry.job_id not in jobs
        and not entry.job_id.startswith(OWN_PREFIX)
        and (since is None or entry.received_at >= since)
    )
    return [
        Finding(
            fault=Fault.UNEXPECTED_CALLBACK,
            sentence=f"{count} callback(s) arrived for an id that the kit never submitted.",
            job_id=job_id,
        )
        for job_id, count in strangers.items()
    ]


def _by_id(traces: Iterable[JobTrace]) -> dict[str, list[JobTrace]]:
    jobs: defaultdict[str, list[JobTrace]] = defaultdict(list)
    for trace in traces:
        jobs[trace.job_id].append(trace)
    return dict(jobs)
