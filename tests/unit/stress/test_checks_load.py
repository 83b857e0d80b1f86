from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import BUDGETS, session_with
from leaky_service import Leak, LeakyService

from stress.checks.load import check_rapid_concurrent, check_rapid_sequential
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.references import References

ADAPTERS = ("", "adapters/ink.safetensors", "adapters/clay.safetensors")


def faults(report: CheckReport) -> set[Fault]:
    return {finding.fault for finding in report.findings}


def lines(session: Any) -> list[str]:
    return list(session.progress.lines)


async def test_correct_jobs_at_once_pass_and_are_counted(tmp_path: Path) -> None:
    async with session_with(FaultyService(workers=4), tmp_path) as session:
        report = await check_rapid_concurrent(session, 12, references=References())

    assert (report.verdict, report.findings) == (Verdict.PASSED, ())
    assert {name: report.figures[name] for name in ("jobs", "jobs_accepted", "references_drawn")} == {
        "jobs": 12,
        "jobs_accepted": 12,
        "references_drawn": 12,
    }
    assert report.figures["jobs_per_s"] > 0
    assert len({trace.picture.sha256 for trace in report.jobs[:12] if trace.picture}) == 12


async def test_the_report_of_jobs_at_once_has_the_specified_lines(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_rapid_concurrent(session, 3)

    first = report.jobs[0]
    assert first.picture is not None
    measured = f"variance={first.picture.variance:.1f}, blank=0.0%"
    printed = lines(session)
    assert printed[0] == f"✅ Job {first.job_id}: Valid image ({first.picture.size_bytes} bytes, {measured})"
    assert printed[3:] == [
        "=" * 80,
        "STRESS TEST RESULTS",
        "=" * 80,
        "",
        "Total jobs: 3",
        "Completed: 3",
        "Valid images: 3",
        "Invalid/incomplete images: 0",
        "No images: 0",
    ]


async def test_partial_pictures_are_listed_with_their_reason(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.PARTIAL_PICTURE), tmp_path) as session:
        report = await check_rapid_concurrent(session, 2)

    assert faults(report) == {Fault.PARTIAL_PICTURE}
    printed = lines(session)
    job_id, reason = report.jobs[0].job_id, "Partial render detected: 100.0% of bottom rows are blank"
    assert printed[0] == f"❌ Job {job_id}: PARTIAL RENDER - {reason}"
    assert printed[-3:-1] == ["INVALID IMAGES DETECTED:", f"  - {job_id}: {reason}"]
    assert "Invalid/incomplete images: 2" in printed


async def test_jobs_without_a_picture_fail_the_check(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.FAILS), tmp_path) as session:
        report = await check_rapid_concurrent(session, 2)

    assert faults(report) == {Fault.FAILED_JOB}
    assert "No images: 2" in lines(session)
    assert lines(session)[0].startswith(f"❌ Job {report.jobs[0].job_id}: NO IMAGE - The job ended as failed")


@pytest.mark.parametrize(
    ("flaw", "fault"),
    [
        (Flaw.SWAPPED_PICTURES, Fault.SWAPPED_PICTURE),
        (Flaw.STALE_PICTURE, Fault.STALE_PICTURE),
        (Flaw.CHANGED_BYTES, Fault.CHANGED_BYTES),
        (Flaw.DUPLICATE_CALLBACK, Fault.DUPLICATE_CALLBACK),
        (Flaw.ERROR_ON_SUBMIT, Fault.REFUSED_SUBMIT),
        (Flaw.WRONG_SIZE, Fault.INVALID_PICTURE),
        (Flaw.WRONG_SECRET, Fault.WRONG_SECRET),
    ],
)
async def test_a_flaw_under_load_is_found(flaw: Flaw, fault: Fault, tmp_path: Path) -> None:
    async with session_with(FaultyService(flaw, workers=4, step_s=0.02), tmp_path) as session:
        report = await check_rapid_concurrent(session, 6, references=References())

    assert fault in faults(report), report.findings
    assert report.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("flaw", "fault"), [(Flaw.MISSING_CALLBACK, Fault.MISSING_CALLBACK), (Flaw.SLOW, Fault.LATE_JOB)]
)
async def test_what_never_comes_is_found(flaw: Flaw, fault: Fault, tmp_path: Path) -> None:
    impatient = replace(BUDGETS, base_s=0.5, callback_s=0.5)
    async with session_with(FaultyService(flaw), tmp_path, budgets=impatient) as session:
        report = await check_rapid_concurrent(session, 3)

    assert faults(report) == {fault}
    assert {finding.job_id for finding in report.findings} == {trace.job_id for trace in report.jobs}


async def test_a_swapped_picture_names_the_job_whose_it_is(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.SWAPPED_PICTURES, workers=2, step_s=0.05), tmp_path) as session:
        report = await check_rapid_concurrent(session, 2, references=References())

    one, other = report.jobs[0].job_id, report.jobs[1].job_id
    assert [(finding.job_id, finding.fault) for finding in report.findings] == [
        (one, Fault.SWAPPED_PICTURE),
        (other, Fault.SWAPPED_PICTURE),
    ]
    assert other in report.findings[0].sentence
    assert one in report.findings[1].sentence


async def test_without_references_one_picture_for_two_requests_is_found(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.STALE_PICTURE, workers=2, step_s=0.05), tmp_path) as session:
        report = await check_rapid_concurrent(session, 6)

    # Five prompts in turn: the sixth job has the first one's, with another seed.
    assert [(finding.fault, finding.job_id) for finding in report.findings] in (
        [(Fault.SWAPPED_PICTURE, report.jobs[5].job_id)],
        [(Fault.STALE_PICTURE, report.jobs[5].job_id)],
    )


async def test_jobs_in_succession_take_each_adapter_in_turn(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path, adapters=ADAPTERS) as session:
        report = await check_rapid_sequential(session, 5, references=References())

    assert (report.verdict, report.findings, report.note) == (Verdict.PASSED, (), None)
    asked = [trace.request.get("lora_path", "") for trace in report.jobs[:5]]
    assert asked == [*ADAPTERS, *ADAPTERS[:2]]
    submitted = [trace.submitted_s for trace in report.jobs[:5]]
    assert submitted[4] - submitted[0] >= 0.35
    assert lines(session)[-2:] == ["Valid: 5/5", "Invalid: 0/5"]


async def test_jobs_in_succession_that_fail_are_counted_as_invalid(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.GREY_TAIL), tmp_path) as session:
        report = await check_rapid_sequential(session, 2)

    assert report.verdict is Verdict.FAILED
    assert report.note is not None
    assert lines(session)[-2:] == ["Valid: 0/2", "Invalid: 2/2"]


async def test_an_adapter_that_stays_is_found(tmp_path: Path) -> None:
    async with session_with(LeakyService(Leak.ADAPTER_STAYS, workers=1), tmp_path, adapters=ADAPTERS) as session:
        report = await check_rapid_sequential(session, 4, references=References())

    assert faults(report) == {Fault.WRONG_PICTURE}
    # The second base job comes after two with adapters.
    assert report.jobs[3].job_id in {finding.job_id for finding in report.findings}


async def test_a_busy_machine_gets_an_expiry_that_its_jobs_can_meet(tmp_path: Path) -> None:
    patient = replace(BUDGETS, base_s=3600.0)
    async with session_with(FaultyService(), tmp_path, budgets=patient) as session:
        report = await check_rapid_concurrent(session, 1)

    expiry = datetime.fromisoformat(str(report.jobs[0].request["expiry"]))
    assert expiry > datetime.now(UTC) + timedelta(seconds=3000)
