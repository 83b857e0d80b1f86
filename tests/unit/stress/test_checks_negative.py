from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import ASKING, session_with

from stress.callback_server import CallbackServer
from stress.catalogue import RUN_CHECKS
from stress.checks.inbox import LocalInbox
from stress.checks.negative import NEGATIVE_CHECKS
from stress.checks.negative_answers import INVALID, INVALID_WHEN_COMPLETE, check_invalid_requests, check_unknown_id
from stress.checks.negative_callbacks import check_failing_target, check_redirecting_target, check_wrong_secret
from stress.checks.negative_jobs import (
    check_cancel_queued,
    check_cancel_running,
    check_duplicate_submission,
    check_id_in_use,
    check_job_timeout,
    check_redeliver,
    check_same_submission,
    limit_fault,
)
from stress.checks.outcome import CheckReport, Verdict
from stress.checks.session import Budgets, Inbox
from stress.wire import JobState, JobStatus


class PlainInbox:
    """An inbox that can only be read."""

    def __init__(self, server: CallbackServer) -> None:
        inbox = LocalInbox(server)
        self.callback_url = inbox.callback_url
        self.entries_for, self.entries = inbox.entries_for, inbox.entries
        self.wait_for, self.picture = inbox.wait_for, inbox.picture


@pytest.fixture
def unlocked() -> Iterator[CallbackServer]:
    with CallbackServer() as server:
        yield server


async def test_every_case_of_run_is_reported_in_order_and_the_last_looks_at_all_callbacks(tmp_path: Path) -> None:
    reports: list[CheckReport] = []
    async with session_with(FaultyService(step_s=0.05), tmp_path) as session:
        for planned in RUN_CHECKS:
            reports.append(await planned.run(session, tuple(reports)))
        printed = session.progress.lines  # type: ignore[attr-defined]
        assert session.progress.reports == reports  # type: ignore[attr-defined]
    assert [report.name for report in reports] == [planned.name for planned in RUN_CHECKS]
    assert len({report.name for report in reports}) == len(NEGATIVE_CHECKS) + 2
    assert [finding for report in reports for finding in report.findings] == []
    skipped = [report.name for report in reports if report.verdict is Verdict.SKIPPED]
    assert skipped == ["job-timeout"]
    last = reports[-1]
    assert (last.name, last.verdict) == ("late-callbacks", Verdict.PASSED)
    assert last.figures["callbacks"] > 10
    titles = [index for index, line in enumerate(printed) if line.startswith("📝 ")]
    assert [printed[index] for index in titles] == [f"📝 {report.title}" for report in reports]
    assert {printed[index - 1] for index in titles} == {""}
    # The lines of the first case are specified, and have no verdict.
    assert printed[titles[1] - 2].startswith("      ↳ Image stored at: ")
    verdicts = [printed[index - 2] for index in titles[2:]] + printed[-1:]
    skipped_at = [report.name for report in reports[1:]].index("job-timeout")
    assert verdicts.pop(skipped_at) == f"   ⏭️ Skipped: {reports[skipped_at + 1].note}"
    assert set(verdicts) == {"   ✅ Passed"}
    assert sum("Callback metadata: {'status': 'expired'" in line for line in printed) == 1


@pytest.mark.parametrize("check", [check_cancel_running, check_cancel_queued, check_redeliver])
async def test_what_a_service_does_not_offer_is_skipped_and_said(check: object, tmp_path: Path) -> None:
    assert callable(check)
    async with session_with(FaultyService(complete=False), tmp_path) as session:
        report = await check(session)
    assert report.verdict is Verdict.SKIPPED
    assert report.note.startswith("This service offers no")


@pytest.mark.parametrize(
    ("flaw", "check"),
    [
        (Flaw.FOLLOWS_REDIRECTS, check_redirecting_target),
        (Flaw.DOUBLE_JOB, check_duplicate_submission),
        (Flaw.NONE, check_same_submission),
    ],
)
async def test_what_the_first_form_left_open_is_no_fault(flaw: Flaw, check: object, tmp_path: Path) -> None:
    assert callable(check)
    async with session_with(FaultyService(flaw, complete=False, step_s=0.2), tmp_path) as session:
        report = await check(session)
    assert (report.verdict, report.findings) == (Verdict.SKIPPED, ())


async def test_each_request_that_is_let_pass_is_a_finding_of_its_own(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.ACCEPTS_ANYTHING), tmp_path) as session:
        report = await check_invalid_requests(session)
    assert len(report.findings) == len(INVALID) + len(INVALID_WHEN_COMPLETE)
    assert report.findings[0].sentence == "A prompt that is no text was accepted, expected HTTP 422."


async def test_a_service_of_the_first_form_may_let_blank_prompts_pass(tmp_path: Path) -> None:
    service = FaultyService(Flaw.ACCEPTS_ANYTHING, complete=False)
    async with session_with(service, tmp_path) as session:
        report = await check_invalid_requests(session)
    assert len(report.findings) == len(INVALID)
    assert "a blank prompt" in (report.note or "")


async def test_an_invented_job_is_a_finding(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.INVENTS_JOBS), tmp_path) as session:
        report = await check_unknown_id(session)
    assert [finding.sentence for finding in report.findings] == [
        "The status of an unknown job was answered with success, expected HTTP 404."
    ]


@pytest.mark.parametrize("check", [check_failing_target, check_redirecting_target])
async def test_a_receiver_that_cannot_misbehave_skips(check: object, unlocked: CallbackServer, tmp_path: Path) -> None:
    assert callable(check)
    inbox: Inbox = PlainInbox(unlocked)
    async with session_with(FaultyService(), tmp_path, inbox=inbox) as session:
        report = await check(session)
    assert report.verdict is Verdict.SKIPPED


async def test_a_receiver_without_a_secret_cannot_reject(unlocked: CallbackServer, tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path, inbox=LocalInbox(unlocked)) as session:
        report = await check_wrong_secret(session)
    assert report.verdict is Verdict.SKIPPED


async def test_a_service_that_delivers_once_passes_the_failing_target(tmp_path: Path) -> None:
    async with session_with(FaultyService(complete=False), tmp_path) as session:
        report = await check_failing_target(session)
    assert (report.verdict, report.note) == (Verdict.PASSED, "This service sends a callback once.")


async def test_a_job_that_is_over_at_once_cannot_be_checked_while_it_lives(tmp_path: Path) -> None:
    async with session_with(FaultyService(step_s=0.0), tmp_path) as session:
        await session.client.root()
        report = await check_id_in_use(session)
    # On a machine that is slow enough the job is caught all the same.
    assert report.findings == ()


async def test_a_time_limit_that_the_device_does_not_reach_is_skipped(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path, job_timeout_s=300.0) as session:
        report = await check_job_timeout(session)
    assert report.verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("limit_s", "ran_s", "is_wrong"),
    [(60, 0, True), (60, 54, True), (60, 56, False), (60, 75, False), (60, 100, True), (1.5, 0.2, True)],
)
def test_a_job_must_be_ended_at_the_limit_that_the_kit_was_told(limit_s: float, ran_s: float, is_wrong: bool) -> None:
    began = datetime(2026, 11, 29, tzinfo=UTC)
    ended = began + timedelta(seconds=ran_s)
    status = JobStatus(job_id="a", status=JobState.TIMEOUT, started_at=began, failed_at=ended)
    assert (limit_fault(status, limit_s, late_s=30.0) is not None) == is_wrong
    assert limit_fault(status.model_copy(update={"started_at": None}), limit_s, late_s=30.0) is None


async def test_a_limit_beyond_the_budget_of_the_job_is_waited_for(tmp_path: Path) -> None:
    service = FaultyService(job_timeout_s=10.0, step_s=0.2)
    hurried = Budgets(base_s=8.0, per_megapixel_step_s=0.0, callback_s=5.0, quiet_s=0.1)
    asking = replace(ASKING, expiry_minutes=1 / 60)
    async with session_with(service, tmp_path, budgets=hurried, asking=asking, job_timeout_s=10.0) as session:
        report = await check_job_timeout(session)
    assert report.findings == ()


async def test_jobs_without_a_secret_are_checked_too(unlocked: CallbackServer, tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path, inbox=LocalInbox(unlocked)) as session:
        report = await check_redeliver(replace(session, secret=""))
    assert (report.verdict, report.findings) == (Verdict.PASSED, ())
