from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import BUDGETS, session_with
from leaky_service import Leak, LeakyService

from stress.checks import soak
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.soak import check_soak
from stress.checks.trends import Allowance

GENEROUS = Allowance(fraction=5.0, floor=60.0)
"""For tests of something else: the machine that runs them may itself become slower."""


def faults(report: CheckReport) -> set[Fault]:
    return {finding.fault for finding in report.findings}


async def test_a_steady_service_passes_with_its_figures_and_curves(tmp_path: Path) -> None:
    async with session_with(LeakyService(workers=8), tmp_path) as session:
        report = await check_soak(session, rate_per_s=10, duration_s=2, latency_allowance=GENEROUS)

    assert (report.verdict, report.findings, report.note) == (Verdict.PASSED, (), None)
    assert {name: report.figures[name] for name in ("jobs", "jobs_accepted", "jobs_due", "jobs_with_findings")} == {
        "jobs": 20,
        "jobs_accepted": 20,
        "jobs_due": 20,
        "jobs_with_findings": 0,
    }
    assert {"submit_p99_ms", "final_p99_s", "callback_p99_s", "jobs_per_s", "memory_last_mib"} <= set(report.figures)
    assert len(report.series["final_s"]) == len(report.series["callback_s"]) == 20
    assert {value for _, value in report.series["memory_mib"]} <= {500.0, 501.0}


async def test_a_service_that_becomes_slower_is_found(tmp_path: Path) -> None:
    async with session_with(LeakyService(Leak.SLOWER_AND_SLOWER, workers=40), tmp_path) as session:
        report = await check_soak(session, rate_per_s=8, duration_s=2.5, latency_allowance=Allowance(0.3, 0.3))

    assert faults(report) == {Fault.GROWING_LATENCY}
    assert "The time to the final status rose by" in report.findings[0].sentence


async def test_a_service_that_takes_more_and_more_memory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "MIN_SAMPLE_INTERVAL_S", 0.02)
    async with session_with(LeakyService(Leak.MORE_AND_MORE_MEMORY), tmp_path) as session:
        report = await check_soak(session, rate_per_s=4, duration_s=2, latency_allowance=GENEROUS)

    assert faults(report) == {Fault.GROWING_MEMORY}
    assert "The memory of the service rose by" in report.findings[0].sentence
    assert report.figures["memory_last_mib"] > report.figures["memory_first_mib"]


async def test_jobs_are_left_out_rather_than_piled_up(tmp_path: Path) -> None:
    service = FaultyService(workers=1, step_s=0.1)
    async with session_with(service, tmp_path) as session:
        report = await check_soak(session, rate_per_s=20, duration_s=2, max_in_flight=3, latency_allowance=GENEROUS)

    assert faults(report) == {Fault.SLOW_ANSWER}
    assert report.figures["most_jobs_open"] == 3
    assert report.figures["jobs_due"] == 40
    assert report.figures["jobs_left_out"] == 40 - service.submissions > 0
    assert "did not keep up" in report.findings[0].sentence


async def test_a_service_without_memory_in_its_health_is_noted(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_soak(session, rate_per_s=5, duration_s=0.5, latency_allowance=GENEROUS)

    assert report.verdict is Verdict.PASSED
    assert report.note is not None
    assert "Memory was not measured" in report.note


@pytest.mark.parametrize(
    ("flaw", "fault"),
    [
        (Flaw.FAILS, Fault.FAILED_JOB),
        (Flaw.DUPLICATE_CALLBACK, Fault.DUPLICATE_CALLBACK),
        (Flaw.MISSING_CALLBACK, Fault.MISSING_CALLBACK),
        (Flaw.PARTIAL_PICTURE, Fault.PARTIAL_PICTURE),
        (Flaw.ERROR_ON_SUBMIT, Fault.REFUSED_SUBMIT),
    ],
)
async def test_every_job_is_checked(flaw: Flaw, fault: Fault, tmp_path: Path) -> None:
    impatient = replace(BUDGETS, callback_s=0.5) if flaw is Flaw.MISSING_CALLBACK else BUDGETS
    async with session_with(FaultyService(flaw), tmp_path, budgets=impatient) as session:
        report = await check_soak(session, rate_per_s=8, duration_s=0.5, latency_allowance=GENEROUS)

    assert faults(report) == {fault}
    assert report.figures["jobs_with_findings"] == 4
    assert report.verdict is Verdict.FAILED


async def test_good_pictures_beyond_those_shown_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SHOWN_JOBS", 2)
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_soak(session, rate_per_s=10, duration_s=0.6, latency_allowance=GENEROUS)

    assert report.figures["jobs"] == 6
    assert len(report.jobs) == 2
    assert len(list((tmp_path / "soak").glob("*.png"))) == 2


async def test_a_soak_of_a_slow_device_gives_its_callbacks_the_time_of_their_jobs(tmp_path: Path) -> None:
    slow = replace(BUDGETS, base_s=3600.0)
    async with session_with(FaultyService(), tmp_path, budgets=slow) as session:
        report = await check_soak(session, rate_per_s=10, duration_s=0.1, latency_allowance=GENEROUS)

    expiry = datetime.fromisoformat(str(report.jobs[0].request["expiry"]))
    assert expiry > datetime.now(UTC) + timedelta(seconds=3000)


async def test_a_soak_that_breaks_at_its_end_tells_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the receiver has gone")

    monkeypatch.setattr(soak, "surplus", broken)
    async with session_with(FaultyService(Flaw.BLACK_TAIL), tmp_path) as session:
        report = await check_soak(session, rate_per_s=4, duration_s=1, latency_allowance=GENEROUS)

    assert faults(report) == {Fault.KIT, Fault.PARTIAL_PICTURE}
    assert len(report.jobs) == report.figures["jobs"] == 4


class BrokenMemory:
    """Cannot be read."""

    async def read_bytes(self) -> float | None:
        """Raise what nobody has thought of."""
        raise LookupError("no such thing")


async def test_memory_that_cannot_be_read_costs_its_curve_alone(tmp_path: Path) -> None:
    async with session_with(LeakyService(), tmp_path) as session:
        report = await check_soak(
            session, rate_per_s=4, duration_s=0.5, memory=BrokenMemory(), latency_allowance=GENEROUS
        )
    assert report.verdict is Verdict.PASSED
    assert "memory_mib" not in report.series


async def test_a_rate_of_nothing_is_refused(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        with pytest.raises(ValueError, match="above 0"):
            await check_soak(session, rate_per_s=0, duration_s=1)
