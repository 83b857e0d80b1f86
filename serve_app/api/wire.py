"""The JSON of the async inference protocol: what clients send and receive."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from callback.clock import iso
from callback.records import JobView
from callback.states import FINAL, DeliveryState, JobState
from serve_app.job_request import JobRequest, JobResult

JOB_ID_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
MAX_PROMPT_CHARS = 4000
MAX_SECRET_CHARS = 1024
MAX_SEED = 2**63 - 1

Status = Literal["queued", "processing", "completed", "failed", "timeout"]


def _number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueError only
    return value


def _storable(value: str) -> str:
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("contains a character that is not text (NUL or half of a surrogate pair)")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank: say what to draw")
    return value


def _header_safe(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError("travels in an HTTP header, so it may hold printable ASCII characters only")
    return value


def _iso_moment(value: object) -> object:
    if value is None or isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an ISO 8601 date and time, such as 2030-01-31T12:00:00Z")  # noqa: TRY004
    try:
        moment = datetime.fromisoformat(value.strip())
        # A moment without a zone is UTC.
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 date and time, such as 2030-01-31T12:00:00Z") from None
    return moment


Text = Annotated[str, AfterValidator(_storable)]
Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class InferenceRequest(BaseModel):
    """A request for one picture. Unknown fields are ignored; what is left out gets the model's defaults."""

    model_config = ConfigDict(extra="ignore", str_max_length=8192)

    prompt: Annotated[Text, AfterValidator(_not_blank)] = Field(max_length=MAX_PROMPT_CHARS)
    negative_prompt: Text | None = Field(default=None, max_length=MAX_PROMPT_CHARS)
    model: Text | None = Field(default=None, max_length=64, description="One of the models that `GET /` lists.")
    lora_path: Text | None = Field(default=None, max_length=256, description="Name of an adapter; empty: none.")
    width: Integer = Field(default=1024, ge=64, le=2048)
    height: Integer = Field(default=1024, ge=64, le=2048)
    num_inference_steps: Integer | None = Field(default=None, ge=1, le=100)
    guidance_scale: Number | None = Field(default=None, ge=0, le=20)
    seed: Integer | None = Field(default=None, ge=0, le=MAX_SEED, description="Left out: random, and reported.")
    job_id: str | None = Field(default=None, pattern=JOB_ID_PATTERN, description="Left out: a random UUID.")
    callback_url: Text | None = Field(default=None, max_length=2048)
    callback_secret: Annotated[str, AfterValidator(_header_safe)] | None = Field(
        default=None, max_length=MAX_SECRET_CHARS
    )
    expiry: Annotated[datetime | None, BeforeValidator(_iso_moment)] = Field(
        default=None, description="ISO 8601; no callback is sent after it. Without a zone: UTC."
    )


class Sparse(BaseModel):
    """An answer that leaves out the keys which say nothing yet; records inside it keep theirs."""

    @model_serializer(mode="wrap")
    def _without_nones(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        # Without a return annotation the OpenAPI schema stays that of the fields.
        return {key: value for key, value in handler(self).items() if value is not None}


class SubmitAnswer(Sparse):
    """The job is durably accepted."""

    accepted: Literal[True] = True
    id: str
    job_id: str
    status: Status
    message: str
    status_url: str
    result_url: str
    seed: int
    queue_position: int | None = None
    warnings: list[str]


class RequestEcho(BaseModel):
    """What was asked, defaults filled in. The callback secret is never repeated."""

    prompt: str
    negative_prompt: str | None
    model: str
    lora_path: str | None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int | None
    callback_url: str | None
    callback_secret_provided: bool
    expiry: str | None


class CallbackSection(Sparse):
    """What became of the callback: its latest attempt, and whether more will follow."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["delivered", "failed", "error", "expired", "skipped"]
    payload_status: Literal["completed", "failed"]
    attempted_at: str | None = None
    status_code: int | None = None
    response_preview: str | None = None
    error: str | None = None
    expiry: str | None = None
    reason: str | None = None
    webhook_id: str | None = None
    attempts: int = 0
    next_attempt_at: str | None = None
    final: bool


class JobStatus(Sparse):
    """A job as a poller sees it. Keys that say nothing yet are left out."""

    id: str
    job_id: str
    owner: str | None = None
    status: Status
    queued_at: str
    request: RequestEcho
    queue_position: int | None = None
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    cancel_requested: bool | None = None
    started_at: str | None = None
    completed_at: str | None = None
    failed_at: str | None = None
    seed: int
    attempt: int | None = None
    error: str | None = None
    error_code: str | None = None
    output_path: str | None = None
    result_url: str | None = None
    image_url: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    determinism: Literal["exact", "seeded"] | None = None
    seconds: dict[str, float] | None = None
    warnings: list[str]
    callback: CallbackSection | None = None


class JobList(Sparse):
    """A page of jobs, newest first. `next_cursor` is absent on the last page."""

    inference_jobs: list[JobStatus] | None = None
    edit_jobs: list[JobStatus] | None = None
    next_cursor: int | None = None


class Problem(BaseModel):
    """Why a request was refused: a sentence, and a name for programs."""

    detail: str
    error_code: str


class InvalidField(Sparse):
    """One thing that is wrong with a request, and where."""

    type: str
    loc: list[str | int]
    msg: str
    ctx: dict[str, Any] | None = None


class InvalidRequest(BaseModel):
    """Everything that is wrong with a request."""

    detail: list[InvalidField]


def status_of(view: JobView, *, now: float, position: int | None, service_url: str) -> JobStatus:
    """Show a job at the moment `now`. A final state comes together with the outcome of its first delivery attempt."""
    request = JobRequest.model_validate_json(view.request_json)
    result = JobResult.model_validate_json(view.result_json) if view.result_json else None
    shown = JobStatus(
        id=view.job_id,
        job_id=view.job_id,
        status="queued",
        queued_at=iso(view.queued_at),
        request=_echo(view, request),
        seed=result.seed if result else request.seed,
        warnings=request.warnings + (result.warnings if result else []),
    )
    shown.cancel_requested = view.cancel_requested or None
    if view.started_at is not None:
        shown.status, shown.started_at = "processing", iso(view.started_at)
    if view.settled(now):
        return _final(shown, view, result, service_url)
    if view.state in FINAL:
        # The first delivery attempt is under way; it settles or its bound passes within one callback timeout.
        shown.status, shown.stage = "processing", "delivering"
    elif shown.status == "processing":
        shown.stage, shown.step, shown.steps, shown.attempt = view.stage, view.step, view.steps, view.attempt
    else:
        shown.queue_position = position
    return shown


def _final(shown: JobStatus, view: JobView, result: JobResult | None, service_url: str) -> JobStatus:
    assert view.finished_at is not None  # noqa: S101 - written with every final state
    shown.status = view.state.value
    shown.attempt = view.attempt
    shown.completed_at = iso(view.finished_at)
    shown.callback = callback_section(view)
    if view.state is JobState.COMPLETED:
        shown.result_url = f"/inference/result/{view.job_id}"
        shown.image_url = image_url(service_url, view.job_id)
        shown.output_path = f"images/{view.job_id}.png"
    else:
        shown.failed_at = shown.completed_at
        shown.error, shown.error_code = view.error, view.error_code
    if view.picture is not None:
        shown.sha256, shown.size_bytes = view.picture.sha256, view.picture.size_bytes
        shown.width, shown.height = view.picture.width, view.picture.height
    if result is not None:
        shown.determinism, shown.seconds = result.determinism, result.seconds
    return shown


def image_url(service_url: str, job_id: str) -> str:
    """Return the absolute address of a job's picture."""
    return f"{service_url}/images/{job_id}.png"


def _echo(view: JobView, request: JobRequest) -> RequestEcho:
    return RequestEcho(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model=view.model,
        lora_path=request.adapter,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        seed=request.asked_seed,
        callback_url=view.callback_url,
        callback_secret_provided=view.callback_secret_provided,
        expiry=_iso_or_none(view.expiry),
    )


def callback_section(view: JobView) -> CallbackSection:
    """Show what became of a final job's callback."""
    payload: Literal["completed", "failed"] = "completed" if view.state is JobState.COMPLETED else "failed"
    delivery = view.delivery
    if delivery is None:
        return CallbackSection(
            status="skipped",
            payload_status=payload,
            reason="missing_callback_url",
            attempted_at=_iso_or_none(view.finished_at),
            final=True,
        )
    section = CallbackSection(
        status="failed",
        payload_status=payload,
        attempted_at=_iso_or_none(delivery.attempted_at),
        status_code=delivery.status_code,
        response_preview=delivery.response_preview,
        error=delivery.error,
        webhook_id=delivery.webhook_id,
        attempts=delivery.attempts,
        next_attempt_at=_iso_or_none(delivery.next_attempt_at),
        final=delivery.final,
    )
    if delivery.state is DeliveryState.PENDING:
        section.error = "No attempt has settled yet; the callback is still being delivered."
    else:
        section.status = delivery.state.value  # type: ignore[assignment]  # the others are the wire's words
    if delivery.state is DeliveryState.EXPIRED:
        section.expiry = _iso_or_none(view.expiry)
    return section


def _iso_or_none(moment: float | None) -> str | None:
    return iso(moment) if moment is not None else None
