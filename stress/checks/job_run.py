"""One job while a check watches it."""

from dataclasses import dataclass, field

from stress.checks.outcome import Fault, Finding, JobTrace
from stress.receiver.entries import CallbackEntry
from stress.wire import InferenceRequest, JobStatus, SubmitAnswer


@dataclass
class JobRun:
    """One job while it is watched; `trace` is None until it was submitted, `entries` are those of this job alone."""

    label: str
    request: InferenceRequest
    trace: JobTrace | None = None
    findings: list[Finding] = field(default_factory=list)
    picture: bytes | None = None
    """As it came with the callback, or else as it was downloaded."""
    entries: tuple[CallbackEntry, ...] = ()
    answer: SubmitAnswer | None = None
    downloads: dict[str, bytes] = field(default_factory=dict)
    """What the result address and the image address gave, by the words `result` and `image`."""
    earlier_entries: int = 0
    """Callbacks that earlier jobs of the same id have had."""

    @property
    def accepted(self) -> bool:
        """Whether the service took the job."""
        return self.trace is not None and self.trace.accepted

    @property
    def job_id(self) -> str:
        """The id under which the service knows the job; before that the one that was asked for, or ""."""
        return self.trace.job_id if self.trace is not None else self.request.job_id or ""

    @property
    def status(self) -> JobStatus | None:
        """The latest status that was read."""
        return None if self.trace is None else self.trace.status

    @property
    def good(self) -> bool:
        """Whether nothing was found so far."""
        return not self.findings

    def found(self, fault: Fault, sentence: str) -> None:
        """Add a finding about this job."""
        self.findings.append(Finding(fault=fault, sentence=sentence, job_id=self.job_id or None))

    def found_once(self, fault: Fault, sentence: str) -> None:
        """Add a finding unless the job has one of this fault already."""
        if not any(finding.fault is fault for finding in self.findings):
            self.found(fault, sentence)

    def update(self, **fields: object) -> None:
        """Change fields of the trace."""
        if self.trace is not None:
            self.trace = self.trace.model_copy(update=fields)
