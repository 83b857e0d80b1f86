"""Everything that the job memory refuses, as one tree. The message is a sentence for the client or the operator."""


class TrackerError(Exception):
    """Root of the errors of this room. `code` is stable and machine-readable."""

    code = "tracker_error"


class Refusal(TrackerError):
    """The request itself cannot be granted; nothing was changed and repeating it unchanged will not help.

    Unless `retry_after_s` says when it will.
    """

    def __init__(self, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class JobNotFound(Refusal):
    """No such job, or not one of this owner."""

    code = "job_not_found"


class JobIdInUse(Refusal):
    """The client's job id names a live job with another body, or one whose callback is still being delivered."""

    code = "job_id_in_use"


class IdempotencyKeyReused(Refusal):
    """The Idempotency-Key came before with another body."""

    code = "idempotency_key_reused"


class QueueFull(Refusal):
    """As many jobs are open as the settings allow."""

    code = "queue_full"


class AllowanceUsed(Refusal):
    """The client has asked for as much work as the settings allow it per time."""

    code = "allowance_used"


class RequestReplayed(Refusal):
    """A signed request came before."""

    code = "request_replayed"


class ReplaysUnknown(Refusal):
    """The tracker has just been restarted: it cannot tell yet whether a signed request came before."""

    code = "replays_unknown"


class NotCancellable(Refusal):
    """The job has a final state already."""

    code = "not_cancellable"


class NotRedeliverable(Refusal):
    """The job is still open, has no callback URL, its expiry has passed, or an attempt is under way."""

    code = "not_redeliverable"


class Unavailable(TrackerError):
    """The request was fine and may be repeated: the service cannot take it just now."""

    code = "unavailable"


class StoreUnusable(TrackerError):
    """The store's URL is not one that jobs can be kept behind, now or later."""

    code = "store_unusable"


class StoreUnavailable(Unavailable):
    """The store did not commit: disk full or read-only, database locked, server away."""

    code = "store_unavailable"


class StoreInUse(StoreUnavailable):
    """Another Darkroom, which runs, owns the store."""


SILENCE = "The job tracker does not answer at the moment. Try again in a few seconds."


class TrackerUnavailable(Unavailable):
    """The tracker did not answer in time."""

    code = "tracker_unavailable"


class Deposed(TrackerError):
    """Another tracker owns the store: this one must stop at once."""

    code = "deposed"


class SchemaTooNew(TrackerError):
    """The database was written by a newer Darkroom than this one."""

    code = "schema_too_new"


class EgressRefused(TrackerError):
    """A callback address is not one that the policy lets us connect to."""

    code = "egress_refused"


REFUSALS: dict[str, type[Refusal]] = {
    kind.code: kind
    for kind in (
        JobNotFound,
        JobIdInUse,
        IdempotencyKeyReused,
        QueueFull,
        AllowanceUsed,
        RequestReplayed,
        ReplaysUnknown,
        NotCancellable,
        NotRedeliverable,
    )
}
"""The refusals that travel between rooms, by code."""
