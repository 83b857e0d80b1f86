"""One job while a check watches it."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

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
    entries: tuple[CallbackEntry, ...] = ()
    answer: SubmitAnswer | None = None
    earlier_entries: int = 0
    """Callbacks that earlier jobs of the same id have had."""
    delivered_seen_at: datetime | None = None
    """When a poll first showed that the callback was delivered, by the clock of this machine."""
    received: bytes | None = field(default=None, repr=False)
    """The picture as it came with the callback, or else as it was downloaded; None after `release`."""

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
    def sha256(self) -> str | None:
        """Of the picture that the job got, in hex; None without one."""
        return None if self.trace is None or self.trace.picture is None else self.trace.picture.sha256

    @property
    def picture(self) -> bytes | None:
        """The picture that the job got, from memory or from where it was kept; None without one, or if it is gone."""
        facts = self.trace.picture if self.trace is not None else None
        if self.received is not None or facts is None or facts.path is None:
            return self.received
        try:
            return Path(facts.path).read_bytes()
        except OSError:
            return None

    def release(self) -> None:
        """Let go of the picture in memory: those of hundreds of jobs would fill it, and it lies in its file."""
        self.received = None

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
