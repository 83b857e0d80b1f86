import re
from pathlib import Path

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import session_with
from leaky_service import Leak, LeakyService
from varied_service import Variation, VariedService

from stress.checks.contamination import check_contamination
from stress.checks.load import PROMPTS, check_rapid_concurrent
from stress.checks.negative_jobs import check_id_in_use
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.references import References

ADAPTERS = ("", "adapters/ink.safetensors")


def faults(report: CheckReport) -> set[Fault]:
    return {finding.fault for finding in report.findings}


@pytest.mark.parametrize("complete", [True, False])
async def test_a_correct_service_passes_with_an_adapter_between(complete: bool, tmp_path: Path) -> None:
    async with session_with(FaultyService(complete=complete), tmp_path, adapters=ADAPTERS) as session:
        report = await check_contamination(session, references=References())

    assert (report.verdict, report.findings, report.note) == (Verdict.PASSED, (), None)
    assert (report.figures["jobs"], report.figures["references_drawn"]) == (7, 5)


async def test_without_adapters_the_note_says_what_stood_in_for_them(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_contamination(session)

    assert report.verdict is Verdict.PASSED
    assert report.note is not None
    assert "No adapter was named" in report.note


@pytest.mark.parametrize("with_references", [True, False])
async def test_an_adapter_that_stays_in_place_is_found(with_references: bool, tmp_path: Path) -> None:
    service = LeakyService(Leak.ADAPTER_STAYS, workers=1)
    async with session_with(service, tmp_path, adapters=ADAPTERS) as session:
        report = await check_contamination(session, references=References() if with_references else None)

    assert Fault.WRONG_PICTURE in faults(report) or Fault.SWAPPED_PICTURE in faults(report)
    # On a busy machine the adapter's job may come a place later: then the jobs after that are those it spoils.
    assert {trace.job_id for trace in report.jobs[2:5]} & {finding.job_id for finding in report.findings}


async def test_an_adapter_without_effect_is_found(tmp_path: Path) -> None:
    async with session_with(LeakyService(Leak.ADAPTER_IGNORED), tmp_path, adapters=ADAPTERS) as session:
        report = await check_contamination(session)

    assert report.verdict is Verdict.FAILED
    assert {finding.job_id for finding in report.findings} & {trace.job_id for trace in report.jobs[:3]}


@pytest.mark.parametrize("with_references", [True, False])
async def test_the_old_picture_of_an_id_that_is_used_again_is_found(with_references: bool, tmp_path: Path) -> None:
    async with session_with(LeakyService(Leak.OLD_FILE_OF_ID), tmp_path) as session:
        report = await check_contamination(session, references=References() if with_references else None)

    assert faults(report) == {Fault.STALE_PICTURE}
    (finding,) = report.findings
    assert finding.job_id == report.jobs[5].job_id == report.jobs[6].job_id
    assert "id" in finding.sentence


async def test_a_seed_that_is_lost_under_load_is_found(tmp_path: Path) -> None:
    service = LeakyService(Leak.SEED_LOST_UNDER_LOAD, workers=4, step_s=0.02)
    async with session_with(service, tmp_path) as session:
        report = await check_rapid_concurrent(session, 4, references=References())

    assert faults(report) == {Fault.WRONG_PICTURE}
    assert "Asked for was prompt" in report.findings[0].sentence


async def test_rows_of_a_neighbour_are_found(tmp_path: Path) -> None:
    service = LeakyService(Leak.ROWS_OF_ANOTHER, workers=4, step_s=0.02)
    async with session_with(service, tmp_path) as session:
        report = await check_rapid_concurrent(session, 4, references=References())

    assert Fault.WRONG_PICTURE in faults(report)
    assert any("from 40 to 59" in finding.sentence for finding in report.findings), report.findings


@pytest.mark.parametrize(("determinism", "verdict"), [("seeded", Verdict.PASSED), (None, Verdict.PASSED)])
async def test_rounding_is_allowed_where_bytes_are_not_promised(
    determinism: str | None, verdict: Verdict, tmp_path: Path
) -> None:
    async with session_with(LeakyService(Leak.ROUNDING, determinism=determinism), tmp_path) as session:
        report = await check_rapid_concurrent(session, 4, references=References())

    assert (report.verdict, report.findings) == (verdict, ())


async def test_rounding_is_a_fault_where_bytes_are_promised(tmp_path: Path) -> None:
    async with session_with(LeakyService(Leak.ROUNDING, determinism="exact"), tmp_path) as session:
        report = await check_rapid_concurrent(session, 4, references=References())

    assert faults(report) == {Fault.WRONG_PICTURE}


async def test_swapped_pictures_are_found_by_distance_on_services_without_determinism(tmp_path: Path) -> None:
    service = FaultyService(Flaw.SWAPPED_PICTURES, complete=False, step_s=0.05)
    async with session_with(service, tmp_path) as session:
        report = await check_rapid_concurrent(session, 2, references=References())

    assert faults(report) == {Fault.SWAPPED_PICTURE}


async def test_a_model_that_draws_black_and_white_where_it_is_told_to_passes(tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.OBEDIENT), tmp_path) as session:
        reports = [
            await check_contamination(session, references=References()),
            await check_rapid_concurrent(session, len(PROMPTS)),
        ]

    assert [finding for report in reports for finding in report.findings] == []


async def test_no_prompt_whose_picture_is_judged_asks_for_a_dark_or_white_picture(tmp_path: Path) -> None:
    service = FaultyService(step_s=0.02)
    async with session_with(service, tmp_path) as session:
        for check in (check_contamination, check_id_in_use):
            await check(session)
    asked = {*PROMPTS, *service.prompts}

    assert len(asked) == len(PROMPTS) + 4
    assert [prompt for prompt in asked if re.search(r"black|white|dark|dusk|night", prompt, re.IGNORECASE)] == []
