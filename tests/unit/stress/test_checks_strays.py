from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import BUDGETS, SECRET, session_with
from leaky_service import Leak, LeakyService
from varied_service import Variation, VariedService

from stress.callback_server import CallbackServer
from stress.checks.contamination import check_contamination
from stress.checks.inbox import RemoteInbox
from stress.checks.load import check_rapid_concurrent
from stress.checks.negative_answers import check_invalid_requests
from stress.checks.negative_callbacks import check_wrong_secret
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.strays import check_late_callbacks
from stress.checks.submitted import SubmittedIds
from stress.errors import ConflictError, ServiceBusyError, ServiceFailedError, ServiceUnreachableError


def faults(report: CheckReport) -> list[Fault]:
    return [finding.fault for finding in report.findings]


async def test_one_callback_for_every_job_passes_ids_used_twice_included(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        reports = [await check_rapid_concurrent(session, 3), await check_contamination(session)]
        report = await check_late_callbacks(session, reports)

    assert (report.verdict, report.findings) == (Verdict.PASSED, ())
    assert report.figures == {"jobs": 0, "jobs_accepted": 0, "callbacks": 10, "strangers": 0}


async def after_a_late_callback(leak: Leak, tmp_path: Path, verdict: Verdict = Verdict.PASSED) -> CheckReport:
    """Look once more, after a job's callback came again when its check had found nothing and ended with `verdict`."""
    service = LeakyService(leak)
    async with session_with(service, tmp_path) as session:
        load = await check_rapid_concurrent(session, 1)
        assert load.findings == ()
        service.courier.send_again()
        assert len(await session.inbox.wait_for(load.jobs[0].job_id, count=2, timeout_s=20)) == 2
        report = await check_late_callbacks(session, [load.model_copy(update={"verdict": verdict})])
    assert {finding.job_id for finding in report.findings} <= {load.jobs[0].job_id}
    return report


@pytest.mark.parametrize(
    ("leak", "found"),
    [
        (Leak.LATE_DUPLICATE, [Fault.DUPLICATE_CALLBACK]),
        (Leak.LATE_PICTURE, [Fault.DUPLICATE_CALLBACK, Fault.CHANGED_BYTES]),
        (Leak.LATE_WITHOUT_SECRET, [Fault.DUPLICATE_CALLBACK, Fault.WRONG_SECRET]),
    ],
)
async def test_a_callback_that_comes_after_its_check_is_judged(leak: Leak, found: list[Fault], tmp_path: Path) -> None:
    assert faults(await after_a_late_callback(leak, tmp_path)) == found


async def test_jobs_of_a_skipped_check_are_not_judged_because_it_may_not_know_them_all(tmp_path: Path) -> None:
    assert faults(await after_a_late_callback(Leak.LATE_PICTURE, tmp_path, Verdict.SKIPPED)) == []


async def test_repeats_of_a_callback_that_was_given_a_wrong_secret_are_no_fault(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        refused = await check_wrong_secret(session)
        (job,) = refused.jobs
        assert len(await session.inbox.wait_for(job.job_id, count=2, timeout_s=20)) >= 2
        report = await check_late_callbacks(session, [refused])

    assert (refused.findings, report.findings) == ((), ())


async def test_what_the_checks_said_already_is_not_said_again(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.DUPLICATE_CALLBACK), tmp_path) as session:
        load = await check_rapid_concurrent(session, 2)
        report = await check_late_callbacks(session, [load])

    assert set(faults(load)) == {Fault.DUPLICATE_CALLBACK}
    assert report.findings == ()


async def test_a_missing_callback_is_found_even_if_its_check_said_nothing(tmp_path: Path) -> None:
    impatient = replace(BUDGETS, callback_s=0.2)
    async with session_with(FaultyService(Flaw.MISSING_CALLBACK), tmp_path, budgets=impatient) as session:
        load = await check_rapid_concurrent(session, 2)
        silent = load.model_copy(update={"findings": ()})
        report = await check_late_callbacks(session, [silent])

    assert faults(report) == [Fault.MISSING_CALLBACK] * 2


@pytest.mark.parametrize("prefix", ["", "kit-rapid-concurrent-"])
async def test_a_callback_that_belongs_to_nobody_is_found(prefix: str, tmp_path: Path) -> None:
    async with session_with(LeakyService(Leak.STRANGER, strangers=prefix), tmp_path) as session:
        load = await check_rapid_concurrent(session, 1)
        report = await check_late_callbacks(session, [load])

    (finding,) = report.findings
    assert finding.fault is Fault.UNEXPECTED_CALLBACK
    assert finding.job_id not in {trace.job_id for trace in load.jobs}


@pytest.mark.parametrize("before", [True, False])
async def test_a_callback_of_a_job_from_before_is_nobodys_fault(before: bool, tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:

        async def submit_elsewhere() -> None:
            asked = {"prompt": "a red circle", "width": 64, "height": 64, "num_inference_steps": 1}
            job_id = (await session.client.submit(**asked, callback_url=session.inbox.callback_url)).job_id
            assert await session.inbox.wait_for(job_id, timeout_s=60)

        if before:
            await submit_elsewhere()
        load = await check_rapid_concurrent(session, 1)
        if not before:
            await submit_elsewhere()
        report = await check_late_callbacks(session, [load])

    assert faults(report) == ([] if before else [Fault.UNEXPECTED_CALLBACK])


async def test_a_callback_of_a_refused_submission_is_found(tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.REFUSES_AND_CALLS_BACK), tmp_path) as session:
        reports = [await check_invalid_requests(session), await check_rapid_concurrent(session, 1)]
        report = await check_late_callbacks(session, reports)

    assert [finding for earlier in reports for finding in earlier.findings] == []
    assert set(faults(report)) == {Fault.UNEXPECTED_CALLBACK}
    assert "was refused" in report.findings[0].sentence


async def test_a_callback_of_what_was_accepted_wrongly_is_no_strangers(tmp_path: Path) -> None:
    service = FaultyService(Flaw.ACCEPTS_ANYTHING, complete=False)
    async with session_with(service, tmp_path) as session:
        await check_invalid_requests(session)
        load = await check_rapid_concurrent(session, 1)
        report = await check_late_callbacks(session, [load])
        assert len(await session.inbox.entries()) > 1

    assert report.findings == ()


async def test_a_job_whose_submit_answer_was_lost_may_call_back() -> None:
    ids = SubmittedIds()
    ids.fail("lost", ServiceUnreachableError("POST /inference", 3, "cut off"))
    ids.fail("broken", ServiceFailedError("POST /inference", 500, "oops"))
    ids.fail("busy", ServiceBusyError("POST /inference", 429, "full"))
    ids.fail("taken", ConflictError("POST /inference", 409, "in use"))
    ids.accept("taken", "taken")
    ids.accept("asked", "answered")
    known = {"lost", "broken", "busy", "taken", "asked", "answered", "never"}
    assert {job_id for job_id in known if not ids.may_call_back(job_id)} == {"busy", "never"}
    assert {job_id for job_id in known if ids.was_refused(job_id)} == {"busy"}
    assert ids.unsure_without_id == 0
    ids.fail(None, ServiceUnreachableError("POST /inference", 1, "cut off"))
    assert ids.unsure_without_id == 1


async def test_on_a_receiver_elsewhere_others_are_noted_only(tmp_path: Path) -> None:
    async with CallbackServer(secret=SECRET) as elsewhere, RemoteInbox(elsewhere.url) as inbox:
        form = {"job_id": (None, "theirs"), "status": (None, "completed"), "completed_at": (None, "now")}
        async with (
            session_with(FaultyService(), tmp_path, inbox=inbox) as session,
            httpx.AsyncClient(headers={"X-Callback-Secret": SECRET}) as them,
        ):
            (await them.post(elsewhere.callback_url, files=form)).raise_for_status()
            load = await check_rapid_concurrent(session, 1)
            report = await check_late_callbacks(session, [load])

    assert (report.verdict, report.findings) == (Verdict.PASSED, ())
    assert report.note is not None
    assert "1 more have ids of others" in report.note


@pytest.mark.parametrize("reports", [[], None])
async def test_without_accepted_jobs_there_is_nothing_to_look_at(
    reports: list[CheckReport] | None, tmp_path: Path
) -> None:
    async with session_with(FaultyService(Flaw.ERROR_ON_SUBMIT), tmp_path) as session:
        before = [await check_rapid_concurrent(session, 1)] if reports is None else reports
        report = await check_late_callbacks(session, before)

    assert report.verdict is Verdict.SKIPPED
