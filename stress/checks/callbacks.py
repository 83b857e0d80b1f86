"""What a check demands of the callbacks that arrived for one job, and of what the service says of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from stress.checks.outcome import Fault, Finding
from stress.receiver.entries import CallbackEntry, EntryKind
from stress.wire import CallbackReport, InferenceRequest, JobState, JobStatus

CLOCK_DIFFERENCE = timedelta(seconds=2)
"""By which the receiver's clock may be ahead of the service's."""
EARLY_CLAIM = timedelta(seconds=2)
"""By how much a callback may arrive after the service said that it was delivered, for a clock that is set meanwhile."""
UNDELIVERED = frozenset({"failed", "error"})
"""Services differ in the word for an answer of 400 or more; older ones say `error`, Darkroom `failed`."""


def payload_status(status: JobStatus) -> str:
    """Return the status that the callback of this final job carries: a timeout is sent as `failed`."""
    return "completed" if status.status is JobState.COMPLETED else "failed"


def is_pending(report: CallbackReport) -> bool:
    """Whether the callback was not delivered so far and the service says that it will try again."""
    return report.status in UNDELIVERED and report.final is False


def section_faults(job_id: str, status: JobStatus, report: CallbackReport) -> list[Finding]:
    """Check the `callback` section of a job whose callback must have been delivered to a receiver that behaves."""
    wrong = []
    if report.status != "delivered":
        why = report.error or report.reason or f"status_code {report.status_code}"
        wrong.append(f"status is {report.status!r} ({why}), expected 'delivered'")
    elif report.status_code is None:
        wrong.append("status is 'delivered' without a status_code")
    elif report.status_code >= 400:
        wrong.append(f"status is 'delivered' with status_code {report.status_code}")
    expected = payload_status(status)
    if report.payload_status != expected:
        wrong.append(f"payload_status is {report.payload_status!r}, expected {expected!r}")
    return [
        Finding(fault=Fault.WRONG_CALLBACK_SECTION, sentence=f"The callback section is wrong: {one}.", job_id=job_id)
        for one in wrong
    ]


def early_claims(job_id: str, seen_at: datetime | None, entries: Sequence[CallbackEntry]) -> list[Finding]:
    """Find a callback that the section called delivered, as seen at this moment, before any had arrived.

    Both moments must be of one clock.
    """
    first = min((entry.received_at for entry in entries), default=None)
    if seen_at is None or first is None or first <= seen_at + EARLY_CLAIM:
        return []
    late_s = (first - seen_at).total_seconds()
    sentence = f"The callback section said 'delivered' {late_s:.1f} s before the first callback arrived."
    return [Finding(fault=Fault.WRONG_CALLBACK_SECTION, sentence=sentence, job_id=job_id)]


def entry_faults(job_id: str, status: JobStatus, request: InferenceRequest, entry: CallbackEntry) -> list[Finding]:
    """Check one callback as it arrived."""
    found = content_faults(job_id, status, entry, request.expiry)
    wrong_secret = secret_fault(request, entry)
    if wrong_secret is not None:
        found.append(Finding(fault=Fault.WRONG_SECRET, sentence=wrong_secret, job_id=job_id))
    return found


def content_faults(job_id: str, status: JobStatus, entry: CallbackEntry, expiry: datetime | None) -> list[Finding]:
    """Check one callback as it arrived, but for its secret, which reports do not keep."""
    found = []
    expected = payload_status(status)
    if entry.status != expected:
        found.append((Fault.WRONG_ANSWER, f"The callback says {entry.status!r}, the job is {expected!r}."))
    if expected == "completed" and entry.error:
        found.append((Fault.CALLBACK_WITH_ERROR, f"The callback of a completed job carries the error {entry.error!r}."))
    if expected == "completed" and not entry.has_image:
        found.append((Fault.MISSING_PICTURE, "The callback of a completed job came without its picture."))
    if expected == "failed" and entry.has_image:
        found.append((Fault.WRONG_ANSWER, f"The callback of a job that is {status.status} carries a picture."))
    if entry.signature.is_refusal:
        sentence = f"The callback's signature is {entry.signature.value}, by the key that the receiver was given."
        found.append((Fault.WRONG_SIGNATURE, sentence))
    late = seconds_after_expiry(entry, expiry)
    if late is not None:
        sentence = f"The callback arrived {late:.1f} s after the job's expiry ({_iso(expiry)})."
        found.append((Fault.CALLBACK_AFTER_EXPIRY, sentence))
    return [Finding(fault=fault, sentence=sentence, job_id=job_id) for fault, sentence in found]


def secret_fault(request: InferenceRequest, entry: CallbackEntry) -> str | None:
    """Say what is wrong with the secret that came, without showing either: reports are sent to others."""
    if entry.provided_secret == request.callback_secret:
        return None
    if entry.provided_secret is None:
        return "The callback's X-Callback-Secret is missing."
    if request.callback_secret is None:
        return "The callback carries an X-Callback-Secret, and the job was given none."
    return "The callback's X-Callback-Secret is another one than the job was given."


def duplicate_faults(
    job_id: str, entries: Sequence[CallbackEntry], report: CallbackReport | None = None
) -> list[Finding]:
    """Find what was sent twice.

    A repeat under the same `webhook-id` with a new attempt number is allowed at any time, since the sender may have
    missed the answer; the same attempt twice, and a second delivery of one job, are not. Nor is a further attempt,
    once the service's `report` says that an earlier one was delivered. Without a `webhook-id` nobody can tell a repeat
    from a duplicate: then what follows an accepted callback counts as one.
    """
    found = []
    accepted = False
    ids: set[str] = set()
    # A section that is not final is of a delivery before the one that is under way.
    settled = report is not None and report.status == "delivered" and report.final is not False
    last = report.attempts if report is not None and settled else None
    for entry in entries:
        known = f"webhook-id {entry.webhook_id}, attempt {entry.webhook_attempt}"
        if entry.kind == EntryKind.DUPLICATE:
            found.append(f"The same callback arrived twice ({known}).")
        elif entry.webhook_id is None and accepted:
            found.append("A further callback arrived after one that was answered with success.")
        elif entry.webhook_id is not None and ids and entry.webhook_id not in ids:
            found.append(f"The job's callback was delivered twice: a second one has another id ({known}).")
        elif last is not None and entry.webhook_attempt is not None and entry.webhook_attempt > last:
            found.append(f"The service says 'delivered' after {last} attempt(s), and a further one came ({known}).")
        if entry.webhook_id is not None:
            ids.add(entry.webhook_id)
        accepted = accepted or entry.was_accepted
    return [Finding(fault=Fault.DUPLICATE_CALLBACK, sentence=sentence, job_id=job_id) for sentence in found]


def repeat_faults(job_id: str, first: CallbackEntry, again: CallbackEntry) -> list[Finding]:
    """Check a repeat that was announced or asked for: the same `webhook-id`, a higher attempt, the same picture."""
    found = []
    if again.webhook_id != first.webhook_id:
        sentence = f"The repeat has the webhook-id {again.webhook_id!r}, the first had {first.webhook_id!r}."
        found.append((Fault.DUPLICATE_CALLBACK, sentence))
    elif first.webhook_id is not None and (again.webhook_attempt or 0) <= (first.webhook_attempt or 0):
        sentence = f"The repeat says attempt {again.webhook_attempt}, after {first.webhook_attempt}."
        found.append((Fault.DUPLICATE_CALLBACK, sentence))
    if again.sha256 != first.sha256:
        found.append((Fault.CHANGED_BYTES, "The repeat carries another picture than the first callback."))
    return [Finding(fault=fault, sentence=sentence, job_id=job_id) for fault, sentence in found]


def seconds_after_expiry(entry: CallbackEntry, expiry: datetime | None) -> float | None:
    """Return by how many seconds the callback was too late; None if it was in time or nothing expires."""
    if expiry is None or entry.received_at <= expiry + CLOCK_DIFFERENCE:
        return None
    return (entry.received_at - expiry).total_seconds()


def _iso(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds")
