"""What every check works with: the service, the receiver of its callbacks, the budgets, and whom to tell."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from stress.checks.outcome import CheckReport
from stress.checks.patience import patiently
from stress.checks.seen import SeenPictures
from stress.checks.submitted import SubmittedIds
from stress.client import AsyncDarkroomClient
from stress.errors import ServiceError
from stress.receiver.entries import CallbackEntry
from stress.wire import InferenceRequest, JobStatus, SubmitAnswer

T = TypeVar("T")


class Inbox(Protocol):
    """Where callbacks arrive: a receiver in this process, or one elsewhere that is read over HTTP."""

    @property
    def callback_url(self) -> str:
        """The address to submit as `callback_url`, as the service reaches it."""

    async def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Every callback for the job, in order of arrival."""

    async def entries(self) -> tuple[CallbackEntry, ...]:
        """Every callback that is remembered, for whichever job, in order of arrival."""

    async def wait_for(self, job_id: str, *, count: int = 1, timeout_s: float) -> tuple[CallbackEntry, ...]:
        """Wait for `count` callbacks for the job; fewer than that when `timeout_s` is over."""

    async def picture(self, entry: CallbackEntry) -> bytes | None:
        """The picture that came with this callback, as it arrived; None without one."""


class Progress(Protocol):
    """Whom a check tells what happens, while it happens."""

    def line(self, text: str) -> None:
        """A line of the report on standard output, as specified; printed as it is."""

    def check_started(self, name: str, title: str, jobs: int) -> None:
        """A check begins that will submit about so many jobs."""

    def job_submitted(self, check: str, job_id: str) -> None:
        """A job of the check was accepted."""

    def job_moved(self, check: str, job_id: str, status: JobStatus) -> None:
        """A poll of the job saw something new: status, stage or step."""

    def job_ended(self, check: str, job_id: str, *, good: bool) -> None:
        """All that is to be known of the job is known."""

    def check_ended(self, report: CheckReport) -> None:
        """A check ended."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """How long to wait. A job's budget grows with its size, because validators check slow devices too."""

    base_s: float = 60.0
    """For a job of any size, queueing excluded."""
    per_megapixel_step_s: float = 2.0
    """Per step of a picture of 1024 x 1024; 20 steps on two CPU cores take about 5 s, on a GPU less."""
    callback_s: float = 90.0
    poll_interval_s: float = 2.0
    quiet_s: float = 3.0
    """For what must not come, such as a second callback: how long to look whether it does."""

    def job_s(self, width: int, height: int, steps: int, jobs_ahead: int = 0) -> float:
        """Seconds in which a job must be final when so many jobs of its size are before it."""
        own = self.per_megapixel_step_s * steps * width * height / (1024 * 1024)
        return self.base_s + own * (1 + jobs_ahead)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a check asks to be drawn, unless it says otherwise."""

    prompt: str = "A cute anime girl with blue hair"
    width: int = 1024
    height: int = 1024
    steps: int = 20
    seed: int = 42
    expiry_minutes: float = 5.0
    """From the submit on; later where the budgets leave a job more time, unless `expiry_is_fixed`."""
    expiry_is_fixed: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """One call of the kit against one service."""

    client: AsyncDarkroomClient
    inbox: Inbox
    secret: str
    progress: Progress
    pictures: Path
    """Folder for what was received, for a person to look at."""
    budgets: Budgets = field(default_factory=Budgets)
    asking: Asking = field(default_factory=Asking)
    adapters: tuple[str, ...] = ("",)
    """Values of `lora_path` that the checks cycle through; "" is the base model."""
    job_timeout_s: float | None = None
    """The service's limit for the rendering of one job, where its operator has set one short enough to be reached."""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    seen: SeenPictures = field(default_factory=SeenPictures)
    ids: SubmittedIds = field(default_factory=SubmittedIds)
    interrupted: list[CheckReport] = field(default_factory=list)
    """Reports of checks that were cancelled: what they had found until then."""

    async def submit(
        self,
        request: InferenceRequest,
        *,
        idempotency_key: str | None = None,
        repeat: bool = True,
        **fields: object,
    ) -> SubmitAnswer:
        """Do as `AsyncDarkroomClient.submit`, and note whether callbacks of the job may come."""
        given = fields.get("job_id", request.job_id)
        asked = given if isinstance(given, str) else None
        try:
            answer = await self.client.submit(request, idempotency_key=idempotency_key, repeat=repeat, **fields)
        except ServiceError as error:
            self.ids.fail(asked, error)
            raise
        self.ids.accept(asked, answer.job_id)
        return answer

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call of the client; a busy service is asked again for as long as a job without steps may take.

        Raises what the call raises, `ServiceBusyError` when that time is over.
        """
        return await patiently(call, self.budgets.base_s)
