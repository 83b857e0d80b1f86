from pathlib import Path
from typing import Any

from faulty_service import FaultyService, Flaw
from kit_sessions import session_with
from leaky_service import Leak, LeakyService

from stress.checks.interference import check_interference
from stress.checks.outcome import Fault, Verdict
from stress.checks.references import References

ADAPTERS = ("", "adapters/ink.safetensors", "adapters/clay.safetensors")
STEP_S = 0.02
"""The long job of 50 steps takes a second, the others with four steps a twelfth of that."""


async def test_a_correct_service_keeps_the_long_jobs_picture(tmp_path: Path) -> None:
    async with session_with(FaultyService(step_s=STEP_S), tmp_path, adapters=ADAPTERS) as session:
        report = await check_interference(session, 4, references=References())

    assert (report.verdict, report.findings, report.note) == (Verdict.PASSED, (), None)
    long, *others = report.jobs[:5]
    assert (long.request["num_inference_steps"], long.request["seed"]) == (50, 999)
    assert {trace.request.get("lora_path") for trace in others} == set(ADAPTERS[1:])
    assert all(trace.submitted_s < (long.final_s or 0.0) for trace in others)
    assert report.figures["jobs_cancelled"] == 1
    assert [trace.status.status for trace in others if trace.status] == [
        "completed",
        "completed",
        "failed",
        "completed",
    ]


async def test_with_the_base_model_alone_other_sizes_interfere(tmp_path: Path) -> None:
    async with session_with(FaultyService(step_s=STEP_S), tmp_path) as session:
        report = await check_interference(session, 3)

    assert report.verdict is Verdict.PASSED
    assert report.note is not None
    assert "other sizes" in report.note
    sizes = [(trace.request["width"], trace.request["height"]) for trace in report.jobs[1:]]
    assert sizes == [(64, 128), (128, 64), (64, 64)]


async def test_a_long_job_that_gets_another_picture_is_found(tmp_path: Path) -> None:
    service = LeakyService(Leak.SEED_LOST_UNDER_LOAD, step_s=STEP_S, workers=1)
    async with session_with(service, tmp_path, adapters=ADAPTERS) as session:
        report = await check_interference(session, 2, references=References(), steps=20)

    assert (report.jobs[0].job_id, Fault.WRONG_PICTURE) in {
        (finding.job_id, finding.fault) for finding in report.findings
    }


async def test_a_cancellation_that_is_taken_and_ignored_is_found(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.IGNORES_CANCEL, step_s=STEP_S), tmp_path) as session:
        report = await check_interference(session, 3, steps=20)

    (finding,) = report.findings
    assert finding.fault is Fault.WRONG_ANSWER
    assert finding.job_id == report.jobs[3].job_id
    assert "cancelled" in finding.sentence


async def test_a_service_that_cannot_cancel_is_not_asked_to(tmp_path: Path) -> None:
    async with session_with(FaultyService(complete=False, step_s=STEP_S), tmp_path) as session:
        report = await check_interference(session, 3, steps=20)

    assert report.findings == ()
    assert report.figures["jobs_cancelled"] == 0
    assert report.note is not None
    assert "no way to cancel" in report.note


class _TellsOnlyTheEnd(FaultyService):
    """A service whose answers to polls wait for the job's end, so that nothing can be submitted before it."""

    async def _status(self, job_id: str, wait: float = 20.0) -> dict[str, Any]:
        return await super()._status(job_id, wait)


async def test_a_long_job_that_is_over_too_soon_is_noted(tmp_path: Path) -> None:
    async with session_with(_TellsOnlyTheEnd(), tmp_path) as session:
        report = await check_interference(session, 1, steps=1)

    assert report.verdict is Verdict.PASSED
    assert report.note is not None
    assert "nothing interfered" in report.note
