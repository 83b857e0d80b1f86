"""Records of what a receiver was sent: callbacks, and requests that were none."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_serializer

from stress.receiver.signatures import SignatureVerdict


class EntryKind(StrEnum):
    """How a callback relates to the earlier ones of its delivery.

    A REPEAT carries a known `webhook-id` with a new attempt number; a DUPLICATE carries both again.
    UNIDENTIFIED is a further callback for a job without a `webhook-id`: nobody can tell which it is.
    """

    FIRST = "first"
    REPEAT = "repeat"
    DUPLICATE = "duplicate"
    UNIDENTIFIED = "unidentified"


class Arrival(BaseModel):
    """What every record has. `number` counts from 1, over the restarts of a receiver that keeps its records."""

    model_config = ConfigDict(frozen=True)

    number: int = 0
    received_at: datetime
    answered_status: int | None = None
    """None where the connection was cut instead."""
    sender: str | None = None
    """The sender's IP address."""

    @field_serializer("received_at")
    def _with_utc_offset(self, moment: datetime) -> str:
        # The protocol writes +00:00; pydantic's Z is not read by Python before 3.11.
        return moment.isoformat()


class CallbackEntry(Arrival):
    """One callback as it arrived.

    `secret_ok` is None on a receiver without a secret. `saved_path` names the job's latest picture;
    `sha256` and `image_size` (bytes) are this one's.
    """

    job_id: str
    status: str
    completed_at: str
    image_url: str | None = None
    provided_secret: str | None = None
    secret_ok: bool | None = None
    has_image: bool = False
    error: str | None = None
    image_size: int | None = None
    saved_path: Path | None = None
    sha256: str | None = None
    webhook_id: str | None = None
    webhook_attempt: int | None = None
    webhook_timestamp: str | None = None
    webhook_signature: str | None = None
    signature: SignatureVerdict = SignatureVerdict.NOT_CHECKED
    kind: EntryKind = EntryKind.FIRST

    @property
    def was_accepted(self) -> bool:
        """Whether the sender was answered with success."""
        return self.answered_status is not None and 200 <= self.answered_status < 300

    @property
    def is_genuine(self) -> bool:
        """Whether nothing that was checked, secret and signature, speaks against the sender."""
        return self.secret_ok is not False and not self.signature.is_refusal

    @property
    def lag_s(self) -> float | None:
        """Seconds from `completed_at` to the arrival; None if that is no ISO 8601 moment. UTC if it names no zone."""
        try:
            completed = datetime.fromisoformat(self.completed_at)
        except ValueError:
            return None
        if completed.tzinfo is None:
            completed = completed.replace(tzinfo=UTC)
        return (self.received_at - completed).total_seconds()


class Refusal(Arrival):
    """A request to the callback address that was no callback: what was wrong with it, as it was answered.

    `job_id` is what was sent as such, shortened; it may be anything. `size_bytes` is the announced length.
    """

    reason: str
    job_id: str | None = None
    size_bytes: int | None = None


class CallbackList(BaseModel):
    """The answer of `GET /callbacks`, in order of arrival."""

    callbacks: tuple[CallbackEntry, ...]


class RefusalList(BaseModel):
    """The answer of `GET /refused`: the latest refusals in order of arrival, and how many there ever were."""

    refused: tuple[Refusal, ...]
    total: int
