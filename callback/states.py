"""The job's states and the only ways from one to another.

The store enforces the table by compare-and-set on (state, attempt): a report that comes late, twice or from a lost
attempt finds no row to change.
"""

from enum import StrEnum


class JobState(StrEnum):
    """The five statuses of the wire protocol; finer truth is in `error_code` and `stage`."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"


OPEN = frozenset({JobState.QUEUED, JobState.PROCESSING})
FINAL = frozenset(JobState) - OPEN

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PROCESSING, JobState.FAILED, JobState.TIMEOUT}),
    JobState.PROCESSING: frozenset({JobState.QUEUED, JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.TIMEOUT: frozenset(),
}


class DeliveryState(StrEnum):
    """What became of the latest attempt to deliver a callback.

    `failed`: an answer other than 2xx, one that came too early, or none. `error`: it could not be tried. `pending`: no
    attempt has settled.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    ERROR = "error"
    EXPIRED = "expired"


def allowed(before: JobState, after: JobState) -> bool:
    """Tell whether a job may go from `before` to `after`."""
    return after in TRANSITIONS[before]
