import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import ASKING, BUDGETS, Recorder, session_with

from stress.background_server import BackgroundServer
from stress.checks import following
from stress.checks.guard import CheckSkipped, guarded
from stress.checks.jobs import Watch
from stress.checks.load import check_rapid_concurrent
from stress.checks.negative_jobs import check_early_result
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.protocol import check_protocol
from stress.checks.session import Session
from stress.checks.soak import check_soak
from stress.errors import ServiceUnreachableError
from stress.kit_run import Plan, PlannedCheck, run_plan
from stress.kit_settings import KitSettings
from stress.reports.console import ConsoleProgress
from stress.wire import JobStatus

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first poll of a job that does not end is answered when its hold is over."""
    monkeypatch.setattr(following, "LONG_POLL_S", 1)


class Signalling(Recorder):
    """Sets an event when `count` jobs have moved, or ended."""

    def __init__(self, *, moved: int = 10**9, ended: int = 10**9) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self._moved, self._ended = moved, ended

    def job_moved(self, check: str, job_id: str, status: JobStatus) -> None:
        self._moved -= 1
        if self._moved == 0:
            self.reached.set()

    def job_ended(self, check: str, job_id: str, *, good: bool) -> None:
        super().job_ended(check, job_id, good=good)
        self._ended -= 1
        if self._ended == 0:
            self.reached.set()


async def interrupted(
    service: BackgroundServer, folder: Path, progress: Signalling, check: Callable[[Session], Awaitable[CheckReport]]
) -> CheckReport:
    """Cancel the check when `progress` has reached its count, and return what it left."""
    async with session_with(service, folder, progress=progress) as session:
        task = asyncio.ensure_future(check(session))
        await asyncio.wait_for(progress.reached.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE_S)
        (report,) = session.interrupted
        assert progress.reports == [report]
        return report


async def test_an_interrupted_check_reports_what_it_found(tmp_path: Path) -> None:
    service = FaultyService(Flaw.WRONG_ID_IN_STATUS, step_s=60.0)
    report = await interrupted(
        service, tmp_path, Signalling(moved=3), lambda session: check_rapid_concurrent(session, 3)
    )
    assert report.verdict is Verdict.FAILED
    assert {finding.fault for finding in report.findings} == {Fault.WRONG_JOB_ID}
    assert len(report.jobs) == 3
    assert report.note == "Interrupted: 3 submitted, 0 finished."


async def test_an_interrupted_check_that_found_nothing_has_no_verdict(tmp_path: Path) -> None:
    service = FaultyService(step_s=60.0)
    report = await interrupted(service, tmp_path, Signalling(moved=1), check_protocol)
    assert (report.verdict, report.findings, len(report.jobs)) == (Verdict.SKIPPED, (), 1)


async def test_an_interrupted_soak_has_the_findings_figures_and_curves_of_all_jobs(tmp_path: Path) -> None:
    report = await interrupted(
        FaultyService(Flaw.FAILS),
        tmp_path,
        Signalling(ended=5),
        lambda session: check_soak(session, rate_per_s=20, duration_s=3600),
    )
    assert report.verdict is Verdict.FAILED
    assert sum(finding.fault is Fault.FAILED_JOB for finding in report.findings) >= 5
    assert report.figures["jobs_with_findings"] >= 5
    assert len(report.series["final_s"]) >= 5
    assert report.note is not None
    assert "finished" in report.note


async def test_a_check_with_a_live_job_does_not_await_its_end_when_interrupted(tmp_path: Path) -> None:
    # This service cannot cancel, and takes minutes for a job.
    service = FaultyService(step_s=60.0, complete=False)
    stuck = asyncio.Event()

    class Stuck(Recorder):
        def job_submitted(self, check: str, job_id: str) -> None:
            stuck.set()

    async with session_with(service, tmp_path, progress=Stuck(), budgets=replace(BUDGETS, base_s=600.0)) as session:
        task = asyncio.ensure_future(check_early_result(session))
        await asyncio.wait_for(stuck.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE_S)


async def guarded_report(folder: Path, body: Callable[[Watch], Awaitable[CheckReport]], flaw: Flaw) -> CheckReport:
    async with session_with(FaultyService(flaw), folder) as session:
        return await guarded(session, "one", "One", 1, body)


async def test_what_was_found_before_a_check_is_skipped_is_reported(tmp_path: Path) -> None:
    async def body(watch: Watch) -> CheckReport:
        await watch.run(watch.request(seed=1))
        raise CheckSkipped("The job was over too soon.")

    good = await guarded_report(tmp_path / "good", body, Flaw.NONE)
    bad = await guarded_report(tmp_path / "bad", body, Flaw.WRONG_ID_IN_STATUS)
    assert (good.verdict, good.note) == (Verdict.SKIPPED, "The job was over too soon.")
    assert (bad.verdict, bad.note) == (Verdict.FAILED, "The job was over too soon.")
    assert [finding.fault for finding in bad.findings] == [Fault.WRONG_JOB_ID]


@pytest.mark.parametrize(
    ("error", "fault", "words"),
    [
        (ServiceUnreachableError("GET /", 3, "refused"), Fault.NO_ANSWER, "GET / got no answer"),
        (KeyError("x"), Fault.KIT, "KeyError: 'x'"),
    ],
)
async def test_what_breaks_one_of_several_tasks_is_named(
    error: Exception, fault: Fault, words: str, tmp_path: Path
) -> None:
    async def fail() -> None:
        raise error

    async def body(watch: Watch) -> CheckReport:
        await watch.run(watch.request(seed=1))
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
            outer.create_task(asyncio.Event().wait())
            inner.create_task(fail())
        raise AssertionError

    report = await guarded_report(tmp_path, body, Flaw.NONE)
    (finding,) = report.findings
    assert finding.fault is fault
    assert words in finding.sentence
    assert len(report.jobs) == 1


class Interrupting(ConsoleProgress):
    """Is Ctrl-C at the first poll that shows something."""

    def job_moved(self, check: str, job_id: str, status: JobStatus) -> None:
        super().job_moved(check, job_id, status)
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_the_findings_of_the_running_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ASYNC_CALLBACK_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setenv("ASYNC_CALLBACK_BIND_HOST", "127.0.0.1")
    with FaultyService(Flaw.WRONG_ID_IN_STATUS, step_s=60.0) as service:
        monkeypatch.setenv("ASYNC_MINER_URL", service.url)
        plan = Plan(
            "run",
            KitSettings(),
            (PlannedCheck("its-name", "Its title", lambda session, _: check_protocol(session)),),
            ASKING,
            BUDGETS,
            pictures=tmp_path,
        )
        report = run_plan(plan, Interrupting(live=False))
    (check,) = report.checks
    assert (check.name, check.verdict) == ("its-name", Verdict.FAILED)
    assert [finding.fault for finding in check.findings] == [Fault.WRONG_JOB_ID]
    assert report.settings["interrupted"] is True
