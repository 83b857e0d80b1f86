"""What the faulty service does wrong, what it is asked, and what it keeps of a job."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import uuid4

from pydantic import AnyHttpUrl, BaseModel, Field, field_validator


class Flaw(StrEnum):
    """What the service does wrong; NONE is the correct service."""

    NONE = "none"
    # Pictures
    PARTIAL_PICTURE = "partial_picture"
    BLACK_TAIL = "black_tail"
    GREY_TAIL = "grey_tail"
    WRONG_SIZE = "wrong_size"
    SWAPPED_PICTURES = "swapped_pictures"
    STALE_PICTURE = "stale_picture"
    CHANGED_BYTES = "changed_bytes"
    SERVES_EARLY = "serves_early"
    # Jobs
    ERROR_ON_SUBMIT = "error_on_submit"
    SLOW = "slow"
    FAILS = "fails"
    LOST_JOB = "lost_job"
    WRONG_ID_AT_SUBMIT = "wrong_id_at_submit"
    WRONG_ID_IN_STATUS = "wrong_id_in_status"
    WRONG_ID_IN_CALLBACK = "wrong_id_in_callback"
    DOUBLE_JOB = "double_job"
    STEALS_IDS = "steals_ids"
    IGNORES_CANCEL = "ignores_cancel"
    TIMEOUT_AS_FAILURE = "timeout_as_failure"
    ACCEPTS_ANYTHING = "accepts_anything"
    INVENTS_JOBS = "invents_jobs"
    # Callbacks
    DUPLICATE_CALLBACK = "duplicate_callback"
    MISSING_CALLBACK = "missing_callback"
    WRONG_SECRET = "wrong_secret"
    FINAL_WITHOUT_CALLBACK = "final_without_callback"
    CALLBACK_AFTER_EXPIRY = "callback_after_expiry"
    CALLBACK_WITH_ERROR = "callback_with_error"
    CLAIMS_DELIVERY = "claims_delivery"
    NEW_ID_ON_RETRY = "new_id_on_retry"
    FOLLOWS_REDIRECTS = "follows_redirects"
    FORGETS_REDELIVERY = "forgets_redelivery"


class Submission(BaseModel):
    prompt: Annotated[str, Field(pattern=r"\S")]
    lora_path: str | None = None
    width: Annotated[int, Field(ge=64, le=2048)] = 1024
    height: Annotated[int, Field(ge=64, le=2048)] = 1024
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] = 28
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 7.0
    seed: Annotated[int, Field(ge=0)] = 42
    job_id: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")] = None
    callback_url: AnyHttpUrl | None = None
    callback_secret: str | None = None
    expiry: datetime | None = None

    @field_validator("expiry")
    @classmethod
    def _utc(cls, moment: datetime | None) -> datetime | None:
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)

    def drawn(self) -> str:
        return self.model_dump_json(exclude={"job_id", "callback_url", "callback_secret", "expiry"})


@dataclass
class Job:
    id: str
    asked: Submission
    queued_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: str = "queued"
    ended_at: datetime | None = None
    error: str | None = None
    error_code: str | None = None
    picture: bytes | None = None
    callback: dict[str, Any] | None = None
    webhook_id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    attempts: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a poll has seen the end."""

    @property
    def ended(self) -> bool:
        return self.status in {"completed", "failed", "timeout"}

    @property
    def payload_status(self) -> str:
        return "completed" if self.status == "completed" else "failed"
