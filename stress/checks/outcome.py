"""What a check found, in records that the console, JSON, JUnit and HTML reports share."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict

from stress.wire import JobStatus


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


Text: TypeAlias = Annotated[str, AfterValidator(_encodable)]
"""A service's words. Half of a surrogate pair, which JSON can carry and no file can, becomes a question mark."""


class Record(BaseModel):
    """A frozen record; the JSON report is made of these, so field names are a promise to its readers."""

    model_config = ConfigDict(frozen=True)


class Fault(StrEnum):
    """What can be wrong, by the name that every report uses."""

    # Pictures
    INVALID_PICTURE = "invalid_picture"
    PARTIAL_PICTURE = "partial_picture"
    MISSING_PICTURE = "missing_picture"
    SWAPPED_PICTURE = "swapped_picture"
    STALE_PICTURE = "stale_picture"
    WRONG_PICTURE = "wrong_picture"
    CHANGED_BYTES = "changed_bytes"
    # Jobs
    REFUSED_SUBMIT = "refused_submit"
    LOST_JOB = "lost_job"
    LATE_JOB = "late_job"
    FAILED_JOB = "failed_job"
    WRONG_JOB_ID = "wrong_job_id"
    DOUBLE_JOB = "double_job"
    # Callbacks
    MISSING_CALLBACK = "missing_callback"
    DUPLICATE_CALLBACK = "duplicate_callback"
    UNEXPECTED_CALLBACK = "unexpected_callback"
    WRONG_SECRET = "wrong_secret"  # noqa: S105 - the name of a fault
    WRONG_SIGNATURE = "wrong_signature"
    FINAL_WITHOUT_CALLBACK = "final_without_callback"
    WRONG_CALLBACK_SECTION = "wrong_callback_section"
    CALLBACK_AFTER_EXPIRY = "callback_after_expiry"
    CALLBACK_WITH_ERROR = "callback_with_error"
    # Answers
    WRONG_ANSWER = "wrong_answer"
    SLOW_ANSWER = "slow_answer"
    NO_ANSWER = "no_answer"
    GROWING_MEMORY = "growing_memory"
    GROWING_LATENCY = "growing_latency"
    KIT = "kit"
    """The check itself broke: a defect of the kit or of this machine, told apart from the service's faults."""


class Finding(Record):
    """One thing that is wrong: which fault, with which job, and a sentence with what was seen and what was expected."""

    fault: Fault
    sentence: Text
    job_id: Text | None = None


class PictureFacts(Record):
    """A picture as received. `thumbnail` is a small JPEG as a `data:` address, for the HTML report."""

    sha256: str
    size_bytes: int
    width: int | None = None
    height: int | None = None
    variance: float | None = None
    blank_percentage: float | None = None
    valid: bool
    reason: str | None = None
    thumbnail: str | None = None
    path: str | None = None


class JobTrace(Record):
    """One job from submit to callback, as the kit saw it. Moments are seconds since the check began."""

    job_id: Text
    label: Text = ""
    request: dict[str, object] = {}
    submitted_s: float
    submit_took_s: float
    accepted: bool = True
    final_s: float | None = None
    callback_s: float | None = None
    status: JobStatus | None = None
    picture: PictureFacts | None = None
    callbacks: int = 0


class Verdict(StrEnum):
    """How a check ended. SKIPPED says in the report's `note` why; it counts neither as passed nor as failed."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class CheckReport(Record):
    """One check: passed if and only if `findings` is empty and it was not skipped."""

    name: str
    title: str
    verdict: Verdict
    seconds: float
    findings: tuple[Finding, ...] = ()
    jobs: tuple[JobTrace, ...] = ()
    figures: dict[str, float] = {}
    """Measured numbers by name; the name ends in its unit (`submit_p99_ms`, `jobs_per_s`)."""
    series: dict[str, tuple[tuple[float, float], ...]] = {}
    """Measured curves by name with unit, as (seconds since the check began, value)."""
    note: Text | None = None


class KitReport(Record):
    """A whole call of the kit: what was checked, where, when, and every check in order."""

    kit_version: str
    command: str
    repeat: Text | None = None
    """The line for a shell that makes the same call, without secrets."""
    service_url: str
    service_name: Text | None = None
    service_version: Text | None = None
    callback_base: str
    started_at: datetime
    seconds: float
    settings: dict[str, object] = {}
    checks: tuple[CheckReport, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one passed."""
        verdicts = [check.verdict for check in self.checks]
        return Verdict.FAILED not in verdicts and Verdict.PASSED in verdicts
