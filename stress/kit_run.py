"""One call of the kit: the receiver, the session, the checks one after the other, and the report of them all."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stress.aiohttp_transport import AiohttpTransport
from stress.callback_server import DEFAULT_STORAGE, CallbackServer
from stress.checks.inbox import InboxUnreachableError, LocalInbox, RemoteInbox
from stress.checks.outcome import CheckReport, JobTrace, KitReport, Verdict
from stress.checks.session import Asking, Budgets, Inbox, Session
from stress.client import AsyncDarkroomClient
from stress.errors import BackgroundServerError
from stress.kit_settings import EVERY_ADDRESS, KitSettings, port_of
from stress.preflight import EnvironmentProblem, greet
from stress.reports.console import ConsoleProgress
from stress.reports.words import INTERRUPTED
from stress.wire import ServiceInfo


@dataclass(frozen=True)
class PlannedCheck:
    """A check by name, with what it does in a line, and how to run it (given the reports of the checks before it)."""

    name: str
    title: str
    run: Callable[[Session, Sequence[CheckReport]], Awaitable[CheckReport]]


@dataclass(frozen=True)
class Plan:
    """What to check, where, and how; `pictures` is None if nobody wants to keep them."""

    command: str
    settings: KitSettings
    checks: Sequence[PlannedCheck]
    asking: Asking
    budgets: Budgets
    repeat: str | None = None
    """The line for a shell that makes the same call."""
    adapters: tuple[str, ...] = ("",)
    headers: Mapping[str, str] = field(default_factory=dict)
    own_receiver: bool = True
    pictures: Path | None = None
    job_timeout_s: float | None = None

    def facts(self) -> dict[str, object]:
        """Return what a reader must know to repeat it; secrets are left out."""
        asking, budgets = self.asking, self.budgets
        return {
            "checks": [check.name for check in self.checks],
            "prompt": asking.prompt,
            "width": asking.width,
            "height": asking.height,
            "steps": asking.steps,
            "seed": asking.seed,
            "expiry_minutes": asking.expiry_minutes,
            "expiry": "fixed" if asking.expiry_is_fixed else "later for jobs that may take longer",
            "adapters": [adapter or "base model" for adapter in self.adapters],
            "poll_budget_s": budgets.base_s,
            "poll_budget_per_megapixel_step_s": budgets.per_megapixel_step_s,
            "callback_budget_s": budgets.callback_s,
            "poll_interval_s": budgets.poll_interval_s,
            "receiver": "started by the kit" if self.own_receiver else "elsewhere",
        }


@dataclass
class _Outcome:
    """What is known so far, readable after an interruption too."""

    keeps_pictures: bool
    info: ServiceInfo | None = None
    running: PlannedCheck | None = None
    running_since: float = 0.0
    checks: list[CheckReport] = field(default_factory=list)

    def ended(self, report: CheckReport) -> None:
        """Keep the report of the check that ran, under the name by which --only and --skip know it."""
        if self.running is not None:
            jobs = report.jobs if self.keeps_pictures else tuple(map(_without_path, report.jobs))
            self.checks.append(report.model_copy(update={"name": self.running.name, "jobs": jobs}))
            self.running = None


def run_plan(plan: Plan, progress: ConsoleProgress) -> KitReport:
    """Run the plan's checks and report them; an interruption (Ctrl-C) makes a report of what was done until then.

    Raises:
        EnvironmentProblem: there is nothing to check, or nowhere to receive callbacks.
    """
    outcome = _Outcome(keeps_pictures=plan.pictures is not None)
    started_at, began = datetime.now(UTC), time.monotonic()
    settings = plan.facts()
    with progress:
        try:
            asyncio.run(_run(plan, progress, outcome))
        except KeyboardInterrupt:
            settings[INTERRUPTED] = True
            if outcome.running is not None:
                seconds = time.monotonic() - outcome.running_since
                outcome.checks.append(_interrupted(outcome.running, progress, seconds))
    return KitReport(
        kit_version=_kit_version(),
        command=plan.command,
        repeat=plan.repeat,
        service_url=plan.settings.miner_url,
        service_name=outcome.info.name if outcome.info else None,
        service_version=outcome.info.version if outcome.info else None,
        callback_base=plan.settings.callback_base_url,
        started_at=started_at,
        seconds=time.monotonic() - began,
        settings=settings,
        checks=tuple(outcome.checks),
    )


async def _run(plan: Plan, progress: ConsoleProgress, outcome: _Outcome) -> None:
    url = plan.settings.miner_url
    async with AsyncDarkroomClient(url, headers=plan.headers, transport=AiohttpTransport()) as client:
        outcome.info = await greet(client, url)
        async with _inbox(plan, progress) as inbox:
            progress.line("🚀 Testing Async Inference with Callbacks")
            progress.line(f"   Miner Server: {url}")
            progress.line(f"   Callback URL: {inbox.callback_url}")
            with tempfile.TemporaryDirectory(prefix="darkroom-kit-") as scratch:
                session = Session(
                    client=client,
                    inbox=inbox,
                    secret=plan.settings.callback_secret,
                    progress=progress,
                    pictures=plan.pictures or Path(scratch),
                    budgets=plan.budgets,
                    asking=plan.asking,
                    adapters=plan.adapters,
                    job_timeout_s=plan.job_timeout_s,
                )
                for check in plan.checks:
                    outcome.running, outcome.running_since = check, time.monotonic()
                    try:
                        outcome.ended(await check.run(session, tuple(outcome.checks)))
                    except asyncio.CancelledError:
                        for report in session.interrupted:
                            outcome.ended(report)
                        raise


@asynccontextmanager
async def _inbox(plan: Plan, progress: ConsoleProgress) -> AsyncIterator[Inbox]:
    settings = plan.settings
    base = settings.callback_base_url
    if not plan.own_receiver:
        async with RemoteInbox(base, control_token=settings.callback_control_token) as remote:
            try:
                await remote.entries()
            except InboxUnreachableError as error:
                raise EnvironmentProblem(str(error)) from error
            yield remote
        return
    progress.line("🔄 Starting local callback server...")
    folder = plan.pictures / "callbacks" if plan.pictures else DEFAULT_STORAGE
    host = settings.callback_bind_host or EVERY_ADDRESS
    try:
        server = CallbackServer(
            host,
            port_of(base),
            secret=settings.callback_secret,
            signing_secret=settings.callback_signing_secret,
            public_key=settings.callback_public_key,
            storage=folder,
        )
        await asyncio.to_thread(server.start)
    except ValueError as error:
        raise EnvironmentProblem(str(error)) from error
    except BackgroundServerError as error:
        raise EnvironmentProblem(
            f"The callback receiver could not be started. {error} A receiver that runs already is used with "
            "--no-auto-callback; another port is taken with --callback-base."
        ) from error
    try:
        progress.line(f"   ↳ Listening at {base}")
        yield LocalInbox(server, base)
    finally:
        try:
            await asyncio.to_thread(server.stop)
        except BackgroundServerError as error:
            # What was found is told all the same; the thread ends with this process.
            progress.line(f"   ↳ {error}")


def _without_path(job: JobTrace) -> JobTrace:
    """Leave out where a picture was: the folder is gone when the report is read."""
    picture = job.picture
    return job if picture is None else job.model_copy(update={"picture": picture.model_copy(update={"path": None})})


def _interrupted(check: PlannedCheck, progress: ConsoleProgress, seconds: float) -> CheckReport:
    where = "; ".join(progress.unfinished()) or "before its first job"
    return CheckReport(
        name=check.name, title=check.title, verdict=Verdict.SKIPPED, seconds=seconds, note=f"Interrupted: {where}."
    )


def _kit_version() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "unknown"
