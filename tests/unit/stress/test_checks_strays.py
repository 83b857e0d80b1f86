from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import BUDGETS, SECRET, session_with
from leaky_service import Leak, LeakyService

from stress.callback_server import CallbackServer
from stress.checks.contamination import check_contamination
from stress.checks.inbox import RemoteInbox
from stress.checks.load import check_rapid_concurrent
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.strays import check_callbacks_under_load


def faults(report: CheckReport) -> list[Fault]:
    return [finding.fault for finding in report.findings]


async def test_one_callback_for_every_job_passes_ids_used_twice_included(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        reports = [await check_rapid_concurrent(session, 3), await check_contamination(session)]
        report = await check_callbacks_under_load(session, reports)

    assert (report.verdict, report.findings) == (Verdict.PASSED, ())
    assert report.figures == {"jobs": 0, "jobs_accepted": 0, "callbacks": 10, "strangers": 0}


async def test_a_duplicate_that_comes_after_its_check_is_found(tmp_path: Path) -> None:
    service = LeakyService(Leak.LATE_DUPLICATE)
    async with session_with(service, tmp_path) as session:
        load = await check_rapid_concurrent(session, 1)
        (job,) = load.jobs
        service.courier.send_again()
        await session.inbox.wait_for(job.job_id, count=2, timeout_s=20)
        report = await check_callbacks_under_load(session, [load])

    assert load.findings == ()
    assert [(finding.fault, finding.job_id) for finding in report.findings] == [(Fault.DUPLICATE_CALLBACK, job.job_id)]


async def test_what_the_checks_said_already_is_not_said_again(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.DUPLICATE_CALLBACK), tmp_path) as session:
        load = await check_rapid_concurrent(session, 2)
        report = await check_callbacks_under_load(session, [load])

    assert set(faults(load)) == {Fault.DUPLICATE_CALLBACK}
    assert report.findings == ()


async def test_a_missing_callback_is_found_even_if_its_check_said_nothing(tmp_path: Path) -> None:
    impatient = replace(BUDGETS, callback_s=0.2)
    async with session_with(FaultyService(Flaw.MISSING_CALLBACK), tmp_path, budgets=impatient) as session:
        load = await check_rapid_concurrent(session, 2)
        silent = load.model_copy(update={"findings": ()})
        report = await check_callbacks_under_load(session, [silent])

    assert faults(report) == [Fault.MISSING_CALLBACK] * 2


async def test_a_callback_that_belongs_to_nobody_is_found(tmp_path: Path) -> None:
    since = datetime.now(UTC)
    async with session_with(LeakyService(Leak.STRANGER), tmp_path) as session:
        load = await check_rapid_concurrent(session, 1)
        report = await check_callbacks_under_load(session, [load], since=since)

    (finding,) = report.findings
    assert finding.fault is Fault.UNEXPECTED_CALLBACK
    assert finding.job_id not in {trace.job_id for trace in load.jobs}


async def test_on_a_receiver_elsewhere_others_are_noted_only(tmp_path: Path) -> None:
    async with CallbackServer(secret=SECRET) as elsewhere, RemoteInbox(elsewhere.url) as inbox:
        form = {"job_id": (None, "theirs"), "status": (None, "completed"), "completed_at": (None, "now")}
        async with httpx.AsyncClient(headers={"X-Callback-Secret": SECRET}) as them:
            (await them.post(elsewhere.callback_url, files=form)).raise_for_status()
        async with session_with(FaultyService(), tmp_path, inbox=inbox) as session:
            load = await check_rapid_concurrent(session, 1)
            report = await check_callbacks_under_load(session, [load])

    assert (report.verdict, report.findings) == (Verdict.PASSED, ())
    assert report.note is not None
    assert "1 more have ids of others" in report.note


@pytest.mark.parametrize("reports", [[], None])
async def test_without_accepted_jobs_there_is_nothing_to_look_at(
    reports: list[CheckReport] | None, tmp_path: Path
) -> None:
    async with session_with(FaultyService(Flaw.ERROR_ON_SUBMIT), tmp_path) as session:
        before = [await check_rapid_concurrent(session, 1)] if reports is None else reports
        report = await check_callbacks_under_load(session, before)

    assert report.verdict is Verdict.SKIPPED
