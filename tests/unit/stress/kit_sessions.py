"""A session of the kit against a service of the tests, with small pictures and short waits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stress.background_server import BackgroundServer
from stress.callback_server import CallbackServer
from stress.checks.inbox import LocalInbox
from stress.checks.outcome import CheckReport
from stress.checks.session import Asking, Budgets, Session
from stress.client import AsyncDarkroomClient
from stress.wire import JobStatus

SECRET = "kit-secret"
ASKING = Asking(width=128, height=128, steps=4)
# What is waited for in vain ends a test late; what comes, comes at once.
BUDGETS = Budgets(base_s=30.0, callback_s=15.0, poll_interval_s=0.05, quiet_s=0.3)


class Recorder:
    """Keeps what the checks tell."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.submitted: list[tuple[str, str]] = []
        self.ended: dict[tuple[str, str], bool] = {}
        self.reports: list[CheckReport] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def check_started(self, name: str, title: str, jobs: int) -> None:
        pass

    def job_submitted(self, check: str, job_id: str) -> None:
        self.submitted.append((check, job_id))

    def job_moved(self, check: str, job_id: str, status: JobStatus) -> None:
        pass

    def job_ended(self, check: str, job_id: str, *, good: bool) -> None:
        self.ended[check, job_id] = good

    def check_ended(self, report: CheckReport) -> None:
        self.reports.append(report)


@asynccontextmanager
async def session_with(service: BackgroundServer, folder: Path, **fields: Any) -> AsyncIterator[Session]:
    """Start the service and a receiver; `fields` replace those of the session."""
    async with (
        service,
        CallbackServer(secret=SECRET) as receiver,
        AsyncDarkroomClient(service.url, timeout_s=20) as client,
    ):
        values: dict[str, Any] = {
            "client": client,
            "inbox": LocalInbox(receiver),
            "secret": SECRET,
            "progress": Recorder(),
            "pictures": folder,
            "budgets": BUDGETS,
            "asking": ASKING,
            **fields,
        }
        yield Session(**values)
