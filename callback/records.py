"""The records that travel between the rooms and the tracker: what is asked, what is answered, what readers see.

They are frozen and hold plain values only, because they cross process borders and Darkroom versions.
Moments are seconds since the Unix epoch.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Protocol, TypeVar

from callback.states import FINAL, DeliveryState, JobState

T = TypeVar("T")

PROTOCOL_VERSION = 1
"""Raised when a record below changes so that an older ingress and a newer tracker would misunderstand each other."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A published picture as the tracker records it: artifact key, SHA-256 (hex), bytes, pixels."""

    key: str
    sha256: str
    size_bytes: int
    width: int
    height: int


class PictureStore(Protocol):
    """Where pictures lie; the deployments room implements it and the service hands it in."""

    @property
    def identity(self) -> str:
        """Name of the place: a tracker that looks into another one is replaced."""
        ...

    def read(self, picture: Picture) -> bytes:
        """Return the PNG after checking its size, SHA-256 and pixels; raises if it is missing or altered."""
        ...

    def delete(self, key: str) -> None:
        """Remove the picture; it is no error if there is none."""
        ...

    def link(self, picture: Picture) -> str | None:
        """Return an address of the store's own that serves the picture; None if clients get it from the service."""
        ...

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove what writers that died longer ago have left half written; returns how many files."""
        ...


def across_releases(record: type[T]) -> type[T]:
    """Make pickles of an earlier release readable: fields that are new since then, at the end, get their defaults.

    During an upgrade replicas of both talk to one tracker. A decorator above `@dataclass`: before Python 3.11.4 that
    replaces a `__setstate__` of the class's body (python/cpython#104035).
    """

    def set_state(self: object, state: Sequence[object]) -> None:
        for index, one in enumerate(fields(record)):  # type: ignore[arg-type]
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            object.__setattr__(self, one.name, state[index] if index < len(state) else default)

    # `type[T]` says neither that it is a dataclass nor that it can be unpickled.
    record.__setstate__ = set_state  # type: ignore[attr-defined]
    return record


@across_releases
@dataclass(frozen=True, slots=True)
class Callback:
    """Where the client wants the result sent. `signing_secret` is for an HMAC signature beside the service's own."""

    url: str
    secret: str | None = field(repr=False)
    image_url: str
    signing_secret: str | None = field(default=None, repr=False)


@across_releases
@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated submission. `key` is ours and unique; `job_id` is the client's, unique per owner among the current.

    `request_json` is opaque to the tracker; `fingerprint` tells whether two submissions ask for the same;
    `pixel_steps` is what the job takes from its owner's allowance.
    """

    key: str
    owner: str
    job_id: str
    kind: str
    model: str
    request_json: str
    fingerprint: str
    callback: Callback | None = None
    expiry: float | None = None
    idempotency_key: str | None = None
    pixel_steps: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """The delivery of a final job. `settles_by`: the moment from which readers need not wait for the first attempt."""

    state: DeliveryState
    webhook_id: str
    attempts: int
    final: bool
    settles_by: float
    payload_status: str
    first_settled_at: float | None = None
    attempted_at: float | None = None
    next_attempt_at: float | None = None
    status_code: int | None = None
    response_preview: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as readers see it, at one version of the tracker's change stream."""

    key: str
    owner: str
    job_id: str
    kind: str
    model: str
    state: JobState
    seq: int
    attempt: int
    request_json: str
    fingerprint: str
    queued_at: float
    has_callback: bool
    callback_url: str | None = None
    callback_secret_provided: bool = False
    expiry: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    stage: str | None = None
    step: int = 0
    steps: int = 0
    cancel_requested: bool = False
    error: str | None = None
    error_code: str | None = None
    picture: Picture | None = None
    picture_deleted: bool = False
    result_json: str | None = None
    delivery: DeliveryView | None = None

    def settled(self, now: float) -> bool:
        """Tell whether readers may be shown the final state.

        It comes with the outcome of the first delivery attempt, at the latest one callback timeout after the finish.
        """
        if self.state not in FINAL:
            return False
        delivery = self.delivery
        return delivery is None or delivery.first_settled_at is not None or now >= delivery.settles_by


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running attempt is: `step` of `steps` denoising steps done."""

    key: str
    attempt: int
    stage: str
    step: int
    steps: int
    started_at: float | None = None


# ---- commands: each may be sent again after a lost answer, and then answers the same -------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """Accept a job. Answer: its `JobView` (the earlier one for a repeated submission)."""

    job: NewJob


@dataclass(frozen=True, slots=True)
class ClaimJobs:
    """Take up to `limit` queued jobs of `model` under a lease. Answer: `Claim`s. `claim_id` is new per claim."""

    holder: str
    claim_id: str
    model: str
    limit: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep the leases of these attempts, and tell how far they are. Answer: the keys that this holder has lost."""

    holder: str
    progress: tuple[Progress, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Report the outcome of an attempt. Answer: True if it is (or already was) the job's final state."""

    key: str
    attempt: int
    state: JobState
    picture: Picture | None = None
    result_json: str | None = None
    error: str | None = None
    error_code: str | None = None
    started_at: float | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Give a claimed job back. `blamed`: its replica died under it, which counts towards the cap of attempts.

    Answer: True if the job was still held by this attempt.
    """

    key: str
    attempt: int
    blamed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the job that the client's id named when it was looked up. Answer: `JobView`.

    It is final at once if it was queued, else when the replica has stopped. `key` keeps a cancel that is sent again, or
    that comes late, from a new job that was given the same id meanwhile (see `target`).
    """

    owner: str
    job_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Redeliver:
    """Send the callback of the final job again that the client's id named when it was looked up. Answer: `JobView`.

    `request_id` is new per request; for `key` see `Cancel`.
    """

    owner: str
    job_id: str
    request_id: str
    key: str


def target(command: Cancel | Redeliver) -> str | None:
    """Return the key of the job that the command is for, None if only its id is known.

    During an upgrade an older ingress replica still sends commands without a key.
    """
    return getattr(command, "key", None)


@dataclass(frozen=True, slots=True)
class Remember:
    """Notice a signed request, so that it counts once. `asker` is new for each time that it comes in.

    `signed_at` is the sender's moment of it (wall time; earlier releases read it), `fresh_s` how far from that it
    counts, either way.
    """

    request: str
    asker: str
    signed_at: float
    fresh_s: float


Command = Submit | ClaimJobs | Renew | Finish | Release | Cancel | Redeliver | Remember


@dataclass(frozen=True, slots=True)
class Claim:
    """A job handed to a dispatcher: render it, then report with this `attempt`."""

    key: str
    job_id: str
    attempt: int
    model: str
    request_json: str
    artifact_key: str


@across_releases
@dataclass(frozen=True, slots=True)
class Rejected:
    """The answer to a command that was refused (`retryable` false) or could not be committed (`retryable` true)."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float | None = None


Answer = JobView | tuple[Claim, ...] | tuple[str, ...] | bool | Rejected


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the change stream of one tracker incarnation."""

    epoch: int = -1
    version: int = -1


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that changed since a cursor. With `reset`, `views` is the whole of the open jobs instead."""

    cursor: Cursor
    views: tuple[JobView, ...]
    reset: bool


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of the job list, newest first. `next_cursor` is None on the last page."""

    views: tuple[JobView, ...]
    next_cursor: int | None


@across_releases
@dataclass(frozen=True, slots=True)
class TrackerHealth:
    """What the tracker knows of itself. `degraded` holds sentences; `accepting` is false when submits would fail."""

    epoch: int
    accepting: bool
    degraded: tuple[str, ...]
    open_jobs: int
    queued: dict[str, int] = field(default_factory=dict)
    head_age_s: dict[str, float] = field(default_factory=dict)
    pending_deliveries: int = 0
    public_key: str | None = None
    """What callbacks are signed with (`whpk_...`)."""


@dataclass(frozen=True, slots=True)
class TrackerIdentity:
    """Which code runs with which configuration; a newer replica takes over from an older one."""

    protocol_version: int
    code_version: tuple[str, float]
    code_fingerprint: str
    config_fingerprint: str
    epoch: int
    pid: int
    configured_at: float = 0.0
    """When the service connected that created this tracker (wall time): of two configurations the later one counts."""


def artifact_key(key: str, attempt: int) -> str:
    """Return where an attempt publishes: attempts never share a name, so that a late one overwrites nothing."""
    return f"{key[-2:]}/{key}-{attempt}.png"


def earlier_artifact_key(key: str, attempt: int) -> str:
    """Return where earlier versions published. A folder of its own for each job costs a third sync."""
    return f"{key[-2:]}/{key}/{attempt}.png"
