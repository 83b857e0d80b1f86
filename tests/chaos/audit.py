"""What must be true of every accepted job in the end, whatever was done meanwhile."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stress.receiver.entries import CallbackEntry, EntryKind
from tests.chaos.faults import Disturbance, Kind
from tests.chaos.load import Accepted, Seen

CLOCK_S = 0.05
"""Sender and receiver read the same clock, the receiver a little later."""

DISTURBED_S = 40.0
"""How long after a fault of the receiver it may still take nothing."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job as the service shows it when all is over; None of it where the service does not know it."""

    seen: Seen | None
    downloaded_sha256: str | None
    callback_status: str | None


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    what: str
    job_id: str
    detail: str = ""


def audit(
    accepted: Sequence[Accepted],
    ended: Mapping[str, Ended],
    finals: Mapping[str, set[Seen]],
    written: Sequence[tuple[str, str]],
    callbacks: Sequence[CallbackEntry],
    disturbances: Sequence[Disturbance],
) -> list[Violation]:
    """Return every promise that was not kept. Moments are in seconds since 1970.

    `written`: id and state for each time that the store has taken a final state.
    """
    arrived: dict[str, list[CallbackEntry]] = {}
    for entry in callbacks:
        arrived.setdefault(entry.job_id, []).append(entry)
    found: list[Violation] = []
    for job in accepted:
        found += _of_job(job, ended[job.job_id], finals.get(job.job_id, set()))
        found += _of_callbacks(job, ended[job.job_id], arrived.pop(job.job_id, []), disturbances)
    found += [Violation("callback of an unknown job", job_id) for job_id in arrived]
    ids = {job.job_id for job in accepted}
    times = Counter(job_id for job_id, _ in written if job_id in ids)
    found += [Violation("not one final state", one, f"written {times[one]} times") for one in ids if times[one] != 1]
    twice = [job_id for job_id, count in Counter(job.job_id for job in accepted).items() if count > 1]
    return found + [Violation("accepted twice", job_id) for job_id in twice]


def _of_job(job: Accepted, ended: Ended, finals: set[Seen]) -> list[Violation]:
    if ended.seen is None:
        return [Violation("lost", job.job_id)]
    if ended.seen.status != "completed":
        return [Violation("not completed", job.job_id, f"{ended.seen.status}: {ended.seen.error_code}")]
    found = []
    if len(finals | {ended.seen}) > 1:
        found.append(Violation("two final states", job.job_id, str(finals | {ended.seen})))
    if not ended.seen.sha256 == ended.downloaded_sha256 == job.right:
        found.append(Violation("wrong picture", job.job_id, f"{ended.downloaded_sha256} instead of {job.right}"))
    return found


def _of_callbacks(
    job: Accepted, ended: Ended, arrived: Sequence[CallbackEntry], disturbances: Sequence[Disturbance]
) -> list[Violation]:
    found = [violation for entry in arrived for violation in _of_callback(job, ended, entry)]
    taken = [entry for entry in arrived if entry.was_accepted]
    if not taken and ended.callback_status == "delivered":
        found.append(Violation("callback said to be delivered", job.job_id))
    if not taken and job.calls_back and not _may_be_missing(job, ended, disturbances):
        found.append(Violation("no callback", job.job_id, str(ended.callback_status)))
    if len({entry.webhook_id for entry in arrived}) > 1:
        found.append(Violation("two deliveries", job.job_id))
    if len(taken) > 1:
        until = taken[-1].received_at.timestamp()
        met = sum(job.accepted_at - 1 <= one.at <= until for one in disturbances)
        if len(taken) - 1 > met:
            found.append(Violation("more repeats than faults", job.job_id, f"{len(taken)} callbacks, {met} faults"))
    return found


def _of_callback(job: Accepted, ended: Ended, entry: CallbackEntry) -> list[Violation]:
    found = []
    if entry.kind in {EntryKind.DUPLICATE, EntryKind.UNIDENTIFIED}:
        found.append(Violation("duplicate callback", job.job_id, f"attempt {entry.webhook_attempt}"))
    if not entry.is_genuine:
        found.append(Violation("callback with a wrong secret", job.job_id))
    if ended.seen is not None and entry.status != ended.seen.status:
        found.append(Violation("callback with another state", job.job_id, entry.status))
    if entry.status == "completed" and entry.sha256 != job.right:
        found.append(Violation("wrong picture in a callback", job.job_id, str(entry.sha256)))
    if job.expiry is not None and entry.received_at.timestamp() > job.expiry + CLOCK_S:
        late_s = entry.received_at.timestamp() - job.expiry
        found.append(Violation("callback after expiry", job.job_id, f"{late_s:.2f} s"))
    return found


def _may_be_missing(job: Accepted, ended: Ended, disturbances: Sequence[Disturbance]) -> bool:
    """Tell whether the job's expiry came before its callback could be sent, or while nobody took it."""
    if job.expiry is None:
        return False
    # An attempt fails when the receiver does not take it, and is an error when its turn does not come because those
    # before it are not taken. All other faults let the next one succeed, or none be made.
    deaf = any(
        one.kind is Kind.RECEIVER and job.accepted_at - DISTURBED_S <= one.at <= job.expiry for one in disturbances
    )
    return ended.callback_status == "expired" or (ended.callback_status in {"failed", "error"} and deaf)
