"""Which service these tests check, where its callbacks go, and how much is asked of it.

`ASYNC_MINER_URL` names the service; one that was named and does not answer fails the tests. Where it names none,
whatever speaks the protocol on port 8091 of this machine is checked, else an application of the session's own where
Ray and torch are installed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from stress.callback_server import CallbackServer
from stress.checks.inbox import InboxUnreachableError, LocalInbox, RemoteInbox
from stress.checks.outcome import CheckReport, Verdict
from stress.checks.references import References
from stress.checks.session import Asking, Inbox, Session
from stress.client import AsyncDarkroomClient
from stress.kit_settings import KitSettings, host_of, port_of
from stress.preflight import EnvironmentProblem, greet
from stress.reports.console import ConsoleProgress

EXPIRY_MINUTES = 10


@dataclass(frozen=True)
class Service:
    """The service that is checked; `adapters` are values of `lora_path`, `own` says that the session started it."""

    url: str
    adapters: tuple[str, ...] = ("",)
    own: bool = False


@dataclass(frozen=True)
class Amounts:
    """How much is asked of the service."""

    concurrent: int
    sequential: int
    beside: int
    steps: int
    long_steps: int


@pytest.fixture(scope="session")
def settings() -> KitSettings:
    return KitSettings()


@pytest.fixture(scope="session")
def service(settings: KitSettings, request: pytest.FixtureRequest) -> Service:
    problem = asyncio.run(_problem_of(settings.miner_url))
    if problem is None:
        return Service(settings.miner_url)
    if settings.names_a_service:
        pytest.fail(f"ASYNC_MINER_URL names a service that cannot be checked. {problem}", pytrace=False)
    for package in ("ray", "torch"):
        if find_spec(package) is None:
            pytest.skip(f"Nothing to check: {problem} Without {package} none can be started here.")
    app = request.getfixturevalue("embedded_app")
    return Service(app.url, adapters=("", "monochrome"), own=True)


@pytest.fixture(scope="session")
def amounts(settings: KitSettings, service: Service) -> Amounts:
    """What the environment says, else what was specified, or little for the session's own application."""
    told = bool(settings.model_fields_set & {"stress_concurrent", "stress_sequential"})
    if service.own and not told:
        return Amounts(concurrent=3, sequential=2, beside=3, steps=4, long_steps=10)
    return Amounts(settings.stress_concurrent, settings.stress_sequential, beside=6, steps=20, long_steps=50)


@pytest.fixture(scope="session")
def receiver(
    settings: KitSettings, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CallbackServer | None]:
    """The receiver that the session starts; None if one runs elsewhere.

    It has the port of the base URL, which others may have let through a firewall; the session's own application,
    on this machine, takes any.
    """
    if settings.use_external_callback:
        yield None
        return
    base = settings.callback_base_url
    server = CallbackServer(
        settings.callback_bind_host or host_of(base),
        0 if _is_anywhere(settings, service) else port_of(base),
        secret=settings.callback_secret,
        signing_secret=settings.callback_signing_secret,
        public_key=settings.callback_public_key,
        storage=tmp_path_factory.mktemp("callbacks"),
    )
    with server:
        yield server


@pytest.fixture
async def inbox(settings: KitSettings, service: Service, receiver: CallbackServer | None) -> AsyncIterator[Inbox]:
    base = settings.callback_base_url
    if receiver is not None:
        yield LocalInbox(receiver, None if _is_anywhere(settings, service) else base)
        return
    async with RemoteInbox(base, control_token=settings.callback_control_token) as remote:
        try:
            await remote.entries()
        except InboxUnreachableError as error:
            pytest.fail(f"ASYNC_USE_EXTERNAL_CALLBACK is set. {error}", pytrace=False)
        yield remote


@pytest.fixture(scope="session")
def references(service: Service, tmp_path_factory: pytest.TempPathFactory) -> References:
    """Pictures of requests that were drawn alone, shared by the tests of the session."""
    return References(tmp_path_factory.mktemp("references"), service=service.url)


@pytest.fixture
async def session(
    settings: KitSettings, service: Service, amounts: Amounts, inbox: Inbox, tmp_path: Path
) -> AsyncIterator[Session]:
    with ConsoleProgress(live=False) as progress:
        async with AsyncDarkroomClient(service.url) as client:
            yield Session(
                client=client,
                inbox=inbox,
                secret=settings.callback_secret,
                progress=progress,
                pictures=tmp_path,
                asking=Asking(steps=amounts.steps, expiry_minutes=EXPIRY_MINUTES),
                adapters=service.adapters,
            )


def demand_passed(report: CheckReport) -> None:
    """Fail with every finding, or skip with the reason, unless the check passed."""
    if report.verdict is Verdict.SKIPPED:
        pytest.skip(report.note or report.title)
    found = [f"{finding.fault}: {finding.sentence} (job {finding.job_id})" for finding in report.findings]
    assert not found, "\n".join([f"{report.title}: {len(found)} finding(s)", *found])


def _is_anywhere(settings: KitSettings, service: Service) -> bool:
    return service.own and not settings.names_a_receiver


async def _problem_of(url: str) -> EnvironmentProblem | None:
    async with AsyncDarkroomClient(url) as client:
        try:
            await greet(client, url)
        except EnvironmentProblem as problem:
            return problem
    return None
