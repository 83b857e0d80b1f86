"""The kit against a service with one flaw at a time: each is found, for the right reason, and nothing else is."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import ASKING, BUDGETS, session_with

from stress.checks import negative_answers, negative_callbacks, negative_jobs
from stress.checks.jobs import JobRun, Watch
from stress.checks.negative import NEGATIVE_CHECKS, Check
from stress.checks.outcome import Fault, Verdict
from stress.checks.protocol import check_protocol

STEP_S = 0.05
"""A job of four steps takes 0.2 s, one that is cancelled under way would take 5 s."""

AT_ONCE = 20

IN_VAIN = replace(BUDGETS, base_s=1.0, callback_s=1.0)


@dataclass(frozen=True)
class Row:
    flaw: Flaw
    check: Check
    faults: frozenset[Fault]
    impatient: bool = False
    """Whether the check waits for something that never comes."""

    def __str__(self) -> str:
        return f"{self.flaw}-{self.check.__name__}"


def row(flaw: Flaw, check: Check, *faults: Fault, impatient: bool = False) -> Any:
    made = Row(flaw, check, frozenset(faults), impatient)
    return pytest.param(made, id=str(made))


MATRIX = [
    row(Flaw.PARTIAL_PICTURE, check_protocol, Fault.PARTIAL_PICTURE),
    row(Flaw.BLACK_TAIL, check_protocol, Fault.PARTIAL_PICTURE),
    row(Flaw.GREY_TAIL, check_protocol, Fault.PARTIAL_PICTURE),
    row(Flaw.WRONG_SIZE, check_protocol, Fault.INVALID_PICTURE),
    row(Flaw.CHANGED_BYTES, check_protocol, Fault.CHANGED_BYTES),
    row(Flaw.ERROR_ON_SUBMIT, check_protocol, Fault.REFUSED_SUBMIT),
    row(Flaw.SLOW, check_protocol, Fault.LATE_JOB, impatient=True),
    row(Flaw.FAILS, check_protocol, Fault.FAILED_JOB),
    row(Flaw.LOST_JOB, check_protocol, Fault.LOST_JOB),
    row(Flaw.WRONG_ID_AT_SUBMIT, check_protocol, Fault.LOST_JOB),
    row(Flaw.WRONG_ID_AT_SUBMIT, negative_callbacks.check_expired, Fault.WRONG_JOB_ID, Fault.LOST_JOB),
    row(Flaw.WRONG_ID_IN_STATUS, check_protocol, Fault.WRONG_JOB_ID),
    row(Flaw.WRONG_ID_IN_CALLBACK, check_protocol, Fault.WRONG_JOB_ID, impatient=True),
    row(Flaw.DUPLICATE_CALLBACK, check_protocol, Fault.DUPLICATE_CALLBACK),
    row(Flaw.MISSING_CALLBACK, check_protocol, Fault.MISSING_CALLBACK, impatient=True),
    row(Flaw.WRONG_SECRET, check_protocol, Fault.WRONG_SECRET),
    row(Flaw.WRONG_SECRET, negative_callbacks.check_wrong_secret, Fault.WRONG_SECRET),
    row(Flaw.FINAL_WITHOUT_CALLBACK, check_protocol, Fault.FINAL_WITHOUT_CALLBACK),
    row(Flaw.CALLBACK_WITH_ERROR, check_protocol, Fault.CALLBACK_WITH_ERROR),
    row(Flaw.CALLBACK_AFTER_EXPIRY, check_protocol, Fault.CALLBACK_AFTER_EXPIRY),
    row(
        Flaw.CALLBACK_AFTER_EXPIRY,
        negative_callbacks.check_expired,
        Fault.CALLBACK_AFTER_EXPIRY,
        Fault.WRONG_CALLBACK_SECTION,
    ),
    row(Flaw.CLAIMS_DELIVERY, negative_callbacks.check_unreachable_target, Fault.WRONG_CALLBACK_SECTION),
    row(Flaw.CLAIMS_DELIVERY, negative_callbacks.check_failing_target, Fault.WRONG_CALLBACK_SECTION),
    row(Flaw.CLAIMS_DELIVERY, negative_callbacks.check_wrong_secret, Fault.WRONG_CALLBACK_SECTION),
    row(Flaw.NEW_ID_ON_RETRY, negative_callbacks.check_failing_target, Fault.DUPLICATE_CALLBACK),
    row(Flaw.FOLLOWS_REDIRECTS, negative_callbacks.check_redirecting_target, Fault.WRONG_CALLBACK_SECTION),
    row(Flaw.STALE_PICTURE, negative_jobs.check_id_reuse, Fault.STALE_PICTURE),
    row(Flaw.DOUBLE_JOB, negative_jobs.check_duplicate_submission, Fault.DOUBLE_JOB),
    row(Flaw.STEALS_IDS, negative_jobs.check_id_in_use, Fault.WRONG_ANSWER),
    row(Flaw.STEALS_IDS, negative_jobs.check_same_submission, Fault.DOUBLE_JOB),
    row(Flaw.SERVES_EARLY, negative_jobs.check_early_result, Fault.WRONG_ANSWER),
    row(Flaw.SERVES_EARLY, negative_jobs.check_cancel_running, Fault.WRONG_ANSWER),
    row(Flaw.IGNORES_CANCEL, negative_jobs.check_cancel_running, Fault.WRONG_ANSWER),
    row(Flaw.IGNORES_CANCEL, negative_jobs.check_cancel_queued, Fault.WRONG_ANSWER),
    row(Flaw.FORGETS_REDELIVERY, negative_jobs.check_redeliver, Fault.MISSING_CALLBACK, impatient=True),
    row(Flaw.TIMEOUT_AS_FAILURE, negative_jobs.check_job_timeout, Fault.WRONG_ANSWER),
    row(Flaw.ACCEPTS_ANYTHING, negative_answers.check_invalid_requests, Fault.WRONG_ANSWER),
    row(Flaw.INVENTS_JOBS, negative_answers.check_unknown_id, Fault.WRONG_ANSWER),
]
FOUND_UNDER_LOAD = {Flaw.SWAPPED_PICTURES}


def service_with(flaw: Flaw, check: Check, **options: Any) -> FaultyService:
    if flaw is Flaw.IGNORES_CANCEL:
        # Its long jobs are waited for.
        options["step_s"] = 0.02
    if check is negative_jobs.check_job_timeout:
        options["job_timeout_s"] = 0.5
    return FaultyService(flaw, **{"step_s": STEP_S, **options})


def test_every_flaw_has_a_row() -> None:
    assert {param.values[0].flaw for param in MATRIX} | FOUND_UNDER_LOAD == set(Flaw) - {Flaw.NONE}


@pytest.mark.parametrize("row", MATRIX)
async def test_a_flaw_is_found_for_the_right_reason(row: Row, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"job_timeout_s": 0.5}
    if row.impatient:
        fields["budgets"] = IN_VAIN
    if row.flaw is Flaw.CALLBACK_AFTER_EXPIRY:
        fields["asking"] = replace(ASKING, expiry_minutes=1 / 60, expiry_is_fixed=True)
    async with session_with(service_with(row.flaw, row.check), tmp_path, **fields) as session:
        report = await row.check(session)
    assert {finding.fault for finding in report.findings} == row.faults, report.findings
    assert report.verdict is Verdict.FAILED


@pytest.mark.parametrize("check", [check_protocol, *NEGATIVE_CHECKS], ids=lambda check: check.__name__)
async def test_the_correct_service_passes(check: Check, tmp_path: Path) -> None:
    async with session_with(service_with(Flaw.NONE, check), tmp_path, job_timeout_s=0.5) as session:
        report = await check(session)
    assert (report.verdict, report.findings, report.note) == (Verdict.PASSED, (), None)


@pytest.mark.parametrize("check", [check_protocol, *NEGATIVE_CHECKS], ids=lambda check: check.__name__)
async def test_a_service_of_the_first_form_passes_or_is_not_asked(check: Check, tmp_path: Path) -> None:
    async with session_with(service_with(Flaw.NONE, check, complete=False), tmp_path, job_timeout_s=0.5) as session:
        report = await check(session)
    assert report.findings == ()
    assert report.verdict is Verdict.PASSED or report.note


@pytest.mark.parametrize("flaw", [Flaw.LOST_JOB, Flaw.ERROR_ON_SUBMIT, Flaw.SLOW, Flaw.FAILS])
@pytest.mark.parametrize("check", NEGATIVE_CHECKS, ids=lambda check: check.__name__)
async def test_whatever_the_service_does_the_check_does_not_break(check: Check, flaw: Flaw, tmp_path: Path) -> None:
    async with session_with(service_with(flaw, check), tmp_path, budgets=IN_VAIN, job_timeout_s=0.5) as session:
        report = await check(session)
    assert Fault.KIT not in {finding.fault for finding in report.findings}
    if flaw in {Flaw.LOST_JOB, Flaw.ERROR_ON_SUBMIT} and report.jobs:
        assert report.verdict is Verdict.FAILED


async def test_two_hundred_correct_jobs_raise_no_alarm(tmp_path: Path) -> None:
    async with session_with(FaultyService(workers=8), tmp_path) as session:
        watch, turn = Watch(session, "many"), asyncio.Semaphore(AT_ONCE)

        async def run(seed: int) -> JobRun:
            async with turn:
                return await watch.run(watch.request(seed=seed))

        runs = await asyncio.gather(*(run(seed) for seed in range(200)))
        await watch.recheck(runs, grace_s=0.3)
        report = watch.report("many", "200 jobs", runs)
    assert report.findings == ()
    assert len({run.picture for run in runs}) == 200
    assert report.figures["jobs_accepted"] == 200
