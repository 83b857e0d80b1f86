"""What the service takes and answers, as seen by a client.

Unknown fields are kept on the models (`model_extra`), so that the kit reads services newer than itself.
Ranges are not checked here: the service decides, and a validator must be able to send what is wrong.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    StringConstraints,
    model_validator,
)

# Each wrong entry would become an error of its own, hundreds of times as large as itself.
Warnings = Annotated[tuple[str, ...], FailFast()]
_MAX_DURATIONS = 100


def _few(durations: Any) -> Any:
    if isinstance(durations, dict) and len(durations) > _MAX_DURATIONS:
        raise ValueError(f"there are {len(durations)} entries; {_MAX_DURATIONS} are read")
    return durations


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment that a service states; without an offset it is taken for UTC, which services commonly mean by that."""


class JobState(StrEnum):
    """The five statuses on the wire."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"


FINAL_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT})


class WireModel(BaseModel):
    """A frozen record that keeps the fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        """Read null as "not stated" where the default is another value: some services state every field."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: value
            for name, value in data.items()
            if value is not None or name not in fields or fields[name].is_required() or fields[name].default is None
        }


class InferenceRequest(WireModel):
    """A job to submit; fields that were not set are not sent, so that the service's defaults apply."""

    prompt: str
    negative_prompt: str | None = None
    model: str | None = None
    lora_path: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    job_id: str | None = None
    callback_url: str | None = None
    callback_secret: str | None = None
    expiry: datetime | None = None


class _JobAnswer(WireModel):
    """An answer about one job, which services name `id`, `job_id` or both; `id` is kept as it came if both came."""

    # It becomes a part of addresses: one without letters, or longer than an address may be, names no job.
    job_id: Annotated[str, StringConstraints(min_length=1, max_length=1024)]

    @model_validator(mode="before")
    @classmethod
    def _one_id_under_either_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "job_id" not in data and "id" in data:
            named = {name: value for name, value in data.items() if name != "id"}
            return {**named, "job_id": data["id"]}
        return data


class SubmitAnswer(_JobAnswer):
    """The answer to an accepted job; the two addresses are relative to the base URL."""

    accepted: bool = True
    status: JobState
    message: str | None = None
    seed: int | None = None
    warnings: Warnings = ()
    status_url: str | None = None
    result_url: str | None = None


class CallbackReport(WireModel):
    """What became of the job's callback: delivered, failed, error, expired or skipped."""

    status: str
    status_code: int | None = None
    response_preview: str | None = None
    attempted_at: Moment | None = None
    payload_status: str | None = None
    error: str | None = None
    reason: str | None = None
    expiry: Moment | None = None
    webhook_id: str | None = None
    attempts: int | None = None
    next_attempt_at: Moment | None = None
    final: bool | None = None


class JobStatus(_JobAnswer):
    """The record of a job as its status answer shows it."""

    status: JobState
    queued_at: Moment | None = None
    started_at: Moment | None = None
    completed_at: Moment | None = None
    failed_at: Moment | None = None
    result_url: str | None = None
    image_url: str | None = None
    output_path: str | None = None
    error: str | None = None
    error_code: str | None = None
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    cancel_requested: bool = False
    queue_position: int | None = None
    attempt: int | None = None
    seed: int | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    determinism: str | None = None
    seconds: Annotated[dict[str, Annotated[float, AllowInfNan(False)]], BeforeValidator(_few)] = {}
    warnings: Warnings = ()
    callback: CallbackReport | None = None

    @property
    def is_final(self) -> bool:
        """Whether the job is completed, failed or timed out."""
        return self.status in FINAL_STATES


class JobPage(WireModel):
    """One page of the job list; `next_cursor` is None on the last page and on services without pages."""

    inference_jobs: Annotated[tuple[JobStatus, ...], FailFast()] = ()
    next_cursor: int | str | None = None


class CancelAnswer(_JobAnswer):
    """The answer to a cancellation."""

    status: JobState | None = None
    message: str | None = None


class RedeliverAnswer(_JobAnswer):
    """The answer to the wish for another callback delivery."""

    message: str | None = None
    callback: CallbackReport | None = None


class Health(WireModel):
    """The service's own word on its health."""

    status: str


class ServiceInfo(WireModel):
    """What answers at the root path."""

    name: str
    version: str
