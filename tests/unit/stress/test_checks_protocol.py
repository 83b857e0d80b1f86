from dataclasses import replace
from pathlib import Path

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import BUDGETS, SECRET, session_with

from stress.callback_server import CallbackServer
from stress.checks.guard import CheckSkipped, guarded
from stress.checks.inbox import LocalInbox
from stress.checks.jobs import Watch
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.protocol import check_protocol
from stress.checks.session import Session
from stress.receiver.entries import CallbackEntry


def lines(session: Session) -> list[str]:
    return list(session.progress.lines)  # type: ignore[attr-defined]


async def test_a_good_job_prints_the_specified_lines(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_protocol(session)
        stored = (await session.inbox.entries())[0].saved_path
        assert session.progress.reports == [report]  # type: ignore[attr-defined]
    assert lines(session) == [
        "",
        "📝 Callback delivered before expiry",
        f"   ✅ Job submitted: {report.jobs[0].job_id}",
        "   📋 Status: queued",
        "   💬 Message: Job queued",
        "   🎯 Final status: completed",
        "   📬 Callback received",
        f"      ↳ Secret header: {SECRET}",
        f"      ↳ Image stored at: {stored}",
    ]


async def test_a_picture_is_said_to_be_stored_only_where_the_receiver_has_stored_it(tmp_path: Path) -> None:
    class Forgetful(LocalInbox):
        async def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
            entries = await super().entries_for(job_id)
            return tuple(entry.model_copy(update={"saved_path": None}) for entry in entries)

    with CallbackServer(secret=SECRET) as receiver:
        async with session_with(FaultyService(), tmp_path, inbox=Forgetful(receiver)) as session:
            report = await check_protocol(session)
    assert report.findings == ()
    assert lines(session)[-1] == f"      ↳ Secret header: {SECRET}"


async def test_the_service_is_left_to_choose_the_id(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_protocol(session)
    assert "job_id" not in report.jobs[0].request


@pytest.mark.parametrize(
    ("flaw", "last"),
    [
        (Flaw.ERROR_ON_SUBMIT, "   ❌ Submission failed: POST /inference answered HTTP 500"),
        (Flaw.SLOW, "   ❌ Polling failed: The job was not final after"),
        (Flaw.MISSING_CALLBACK, "   ❌ Expected callback but none received within timeout"),
    ],
)
async def test_a_failure_prints_the_specified_line(flaw: Flaw, last: str, tmp_path: Path) -> None:
    impatient = replace(BUDGETS, base_s=1.0, callback_s=0.5)
    async with session_with(FaultyService(flaw), tmp_path, budgets=impatient) as session:
        await check_protocol(session)
    assert any(line.startswith(last) for line in lines(session))


async def test_what_the_service_says_of_a_missing_callback_is_printed(tmp_path: Path) -> None:
    impatient = replace(BUDGETS, callback_s=0.5)
    async with session_with(FaultyService(Flaw.MISSING_CALLBACK), tmp_path, budgets=impatient) as session:
        await check_protocol(session)
    assert lines(session)[-1].startswith("   ℹ️ Callback metadata: {'status': 'delivered'")  # noqa: RUF001 - as specified


async def test_an_exception_in_a_check_is_a_fault_of_the_kit(tmp_path: Path) -> None:
    async def broken(watch: Watch) -> CheckReport:
        raise ZeroDivisionError(watch.check)

    async with session_with(FaultyService(), tmp_path) as session:
        report = await guarded(session, "some", "Some", 1, broken)
    assert (report.verdict, [finding.fault for finding in report.findings]) == (Verdict.FAILED, [Fault.KIT])
    assert "ZeroDivisionError: some" in report.findings[0].sentence


async def test_a_skipped_check_says_why_and_is_told(tmp_path: Path) -> None:
    async def skipped(watch: Watch) -> CheckReport:
        raise CheckSkipped("Not here.")

    async with session_with(FaultyService(), tmp_path) as session:
        report = await guarded(session, "some", "Some", 1, skipped)
        assert session.progress.reports == [report]  # type: ignore[attr-defined]
    assert (report.verdict, report.note, report.findings) == (Verdict.SKIPPED, "Not here.", ())
