"""The specified lines for each case of `run`: what is checked, before it is, and how it ended."""

from stress.checks.outcome import CheckReport, Verdict
from stress.checks.session import Progress
from stress.wire import CallbackReport, JobStatus


class Telling:
    """Tells `progress` all that it is told, and prints a check's title when it starts and its verdict when it ends."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.line = progress.line

    def check_started(self, name: str, title: str, jobs: int) -> None:
        """Print the title."""
        self.line("")
        self.line(f"📝 {title}")
        self._progress.check_started(name, title, jobs)

    def job_submitted(self, check: str, job_id: str) -> None:
        """Pass it on."""
        self._progress.job_submitted(check, job_id)

    def job_moved(self, check: str, job_id: str, status: JobStatus) -> None:
        """Pass it on."""
        self._progress.job_moved(check, job_id, status)

    def job_ended(self, check: str, job_id: str, *, good: bool) -> None:
        """Pass it on."""
        self._progress.job_ended(check, job_id, good=good)

    def check_ended(self, report: CheckReport) -> None:
        """Print the verdict, with everything that was found or why nothing was checked."""
        self._progress.check_ended(report)
        match report.verdict:
            case Verdict.PASSED:
                self.line("   ✅ Passed")
            case Verdict.SKIPPED:
                self.line(f"   ⏭️ Skipped: {report.note}")
            case Verdict.FAILED:
                for finding in report.findings:
                    self.line(f"   ❌ {finding.fault}: {finding.sentence}")


def metadata_line(report: CallbackReport | None) -> str:
    """Return the specified line about the `callback` section of a job without a callback."""
    if report is None:
        return "   ℹ️ No callback metadata recorded"  # noqa: RUF001 - the specified sign
    shown = report.model_dump(mode="json", exclude_none=True)
    return f"   ℹ️ Callback metadata: {shown}"  # noqa: RUF001
