"""Faults that hide: each is found for the right reason, and what only looks like one raises no alarm."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from faulty_service import FaultyService, Flaw
from kit_sessions import BUDGETS, SECRET, session_with
from varied_service import Variation, VariedService

from stress.catalogue import RUN_CHECKS
from stress.checks import callbacks, negative_answers, negative_callbacks, negative_jobs
from stress.checks.interference import check_interference
from stress.checks.jobs import JobRun, Watch
from stress.checks.load import check_rapid_concurrent
from stress.checks.negative import Check
from stress.checks.outcome import CheckReport, Fault, Verdict
from stress.checks.patience import patiently
from stress.checks.protocol import check_protocol
from stress.checks.references import References
from stress.checks.soak import check_soak
from stress.checks.telling import metadata_line
from stress.checks.trends import Allowance
from stress.errors import ServiceBusyError

IMPATIENT = replace(BUDGETS, callback_s=1.0)
GENEROUS = Allowance(fraction=5.0, floor=60.0)


def faults(report: CheckReport) -> set[Fault]:
    return {finding.fault for finding in report.findings}


@pytest.mark.parametrize(
    ("variation", "fault"),
    [
        (Variation.FLAPS_BACK, Fault.WRONG_ANSWER),
        (Variation.FORGETS_FINAL_JOBS, Fault.LOST_JOB),
        (Variation.SHOWS_ANOTHER_REQUEST, Fault.WRONG_ANSWER),
        (Variation.WRONG_DOWNLOAD, Fault.CHANGED_BYTES),
        (Variation.DELIVERED_TWICE, Fault.DUPLICATE_CALLBACK),
        (Variation.REPEATS_AFTER_DELIVERED, Fault.DUPLICATE_CALLBACK),
        (Variation.OTHER_PICTURE_IN_REPEAT, Fault.CHANGED_BYTES),
        (Variation.ID_UNDER_ONE_NAME, Fault.WRONG_ANSWER),
    ],
)
async def test_a_variation_is_found_for_the_right_reason(variation: Variation, fault: Fault, tmp_path: Path) -> None:
    patient = replace(BUDGETS, quiet_s=3.0)
    async with session_with(VariedService(variation), tmp_path, budgets=patient) as session:
        report = await check_protocol(session)
    assert faults(report) == {fault}, report.findings


@pytest.mark.parametrize(
    "check",
    [
        negative_callbacks.check_failing_target,
        negative_callbacks.check_redirecting_target,
        negative_jobs.check_redeliver,
    ],
)
async def test_a_repeat_that_is_sent_twice_is_found(check: Check, tmp_path: Path) -> None:
    service = VariedService(Variation.REPEAT_SENT_TWICE)
    async with session_with(service, tmp_path, budgets=replace(BUDGETS, quiet_s=1.0)) as session:
        report = await check(session)
    assert faults(report) == {Fault.DUPLICATE_CALLBACK}, report.findings


@pytest.mark.parametrize("check", [check_protocol, negative_jobs.check_duplicate_submission])
async def test_a_repeat_of_a_sender_that_missed_the_answer_is_no_duplicate(check: Check, tmp_path: Path) -> None:
    service = VariedService(Variation.REPEATS_THOUGH_TAKEN)
    async with session_with(service, tmp_path, budgets=replace(BUDGETS, quiet_s=1.0)) as session:
        report = await check(session)
        (job,) = report.jobs
        assert len(await session.inbox.entries_for(job.job_id)) == 2
    assert report.findings == ()


@pytest.mark.parametrize(
    "check",
    [
        check_protocol,
        negative_answers.check_invalid_requests,
        negative_answers.check_unknown_id,
        negative_callbacks.check_failing_target,
        negative_jobs.check_id_in_use,
        negative_jobs.check_same_submission,
        negative_jobs.check_early_result,
        negative_jobs.check_cancel_running,
        negative_jobs.check_redeliver,
    ],
)
async def test_a_service_that_answers_every_other_call_that_it_is_busy_passes(check: Check, tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.OFTEN_BUSY, step_s=0.05), tmp_path) as session:
        report = await check(session)
    assert (report.verdict, report.findings) == (Verdict.PASSED, ())


async def test_a_service_that_stays_busy_is_given_up_when_the_time_is_over() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise ServiceBusyError("GET /", 503, "busy", retry_after_s=0.05)

    with pytest.raises(ServiceBusyError):
        await patiently(call, 0.12)
    assert 2 <= calls <= 4


async def test_a_callback_that_is_called_delivered_before_it_is_sent_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "EARLY_CLAIM", timedelta(seconds=0.05))
    async with session_with(VariedService(Variation.CLAIMS_EARLY), tmp_path) as session:
        report = await check_protocol(session)
    assert faults(report) == {Fault.WRONG_CALLBACK_SECTION}
    assert "before the first callback arrived" in report.findings[0].sentence


async def test_a_callback_that_is_called_delivered_when_it_is_passes_whatever_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "EARLY_CLAIM", timedelta(0))
    async with session_with(FaultyService(), tmp_path) as session:
        report = await check_rapid_concurrent(session, 5)
    assert report.findings == ()


async def test_what_is_wrong_with_a_case_of_run_is_printed_below_its_title(tmp_path: Path) -> None:
    (unknown,) = [planned for planned in RUN_CHECKS if planned.name == "unknown-id"]
    async with session_with(FaultyService(Flaw.INVENTS_JOBS), tmp_path) as session:
        report = await unknown.run(session, ())
        assert session.progress.lines == [  # type: ignore[attr-defined]
            "",
            f"📝 {report.title}",
            "   ❌ wrong_answer: The status of an unknown job was answered with success, expected HTTP 404.",
        ]


def test_a_job_without_a_callback_section_has_its_line_too() -> None:
    assert metadata_line(None) == "   ℹ️ No callback metadata recorded"  # noqa: RUF001 - as specified


async def test_a_service_under_a_prefix_may_say_so_in_its_answers(tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.UNDER_A_PREFIX), tmp_path) as session:
        report = await check_protocol(session)
    assert report.findings == ()


async def test_the_sentence_of_a_status_that_flaps_back_names_both(tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.FLAPS_BACK), tmp_path) as session:
        report = await check_protocol(session)
    assert [finding.sentence for finding in report.findings] == [
        "The job was completed, which is final, and is processing now."
    ]


async def test_a_request_that_is_shown_as_it_was_asked_is_no_fault(tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.SHOWS_REQUEST), tmp_path) as session:
        report = await check_protocol(session)
    assert report.findings == ()
    shown = report.model_dump_json()
    assert "callback_url" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("check", [check_protocol, negative_callbacks.check_wrong_secret])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Variation.NO_SECRET, "is missing"),
        (Variation.ANOTHER_SECRET, "is another one than the job was given"),
    ],
)
async def test_a_wrong_secret_is_said_to_be_wrong_without_showing_one(
    check: Check, fault: Variation, words: str, tmp_path: Path
) -> None:
    async with session_with(VariedService(fault), tmp_path) as session:
        report = await check(session)
    assert faults(report) == {Fault.WRONG_SECRET}
    assert words in report.findings[0].sentence
    shown = report.model_dump_json()
    assert not any(secret in shown for secret in (SECRET, "not-the-secret", "guessed"))


async def test_an_older_service_may_name_the_id_once(tmp_path: Path) -> None:
    async with session_with(VariedService(Variation.ID_UNDER_ONE_NAME, complete=False), tmp_path) as session:
        report = await check_protocol(session)
    assert report.findings == ()


async def test_a_cancelled_job_whose_callback_is_skipped_is_found(tmp_path: Path) -> None:
    service = VariedService(Variation.NO_CALLBACK_OF_FAILED_JOBS, step_s=0.05)
    async with session_with(service, tmp_path) as session:
        report = await negative_jobs.check_cancel_running(session)
    assert faults(report) == {Fault.WRONG_CALLBACK_SECTION}
    assert "status is 'skipped'" in report.findings[0].sentence


async def test_a_job_that_is_cancelled_beside_others_needs_its_callback_too(tmp_path: Path) -> None:
    service = VariedService(Variation.NO_CALLBACK_OF_FAILED_JOBS, step_s=0.05)
    async with session_with(service, tmp_path) as session:
        report = await check_interference(session, 3, steps=20)
    assert report.figures["jobs_cancelled"] == 1
    assert faults(report) == {Fault.WRONG_CALLBACK_SECTION}


async def test_an_equal_jobs_callback_does_not_hide_that_one_is_missing(tmp_path: Path) -> None:
    service = VariedService(Variation.NO_CALLBACK_OF_EVERY_SECOND_JOB, complete=False)
    async with session_with(service, tmp_path, budgets=IMPATIENT) as session:
        watch = Watch(session, "equal")
        first, second = [await watch.run(watch.request(seed=1)) for _ in range(2)]
    assert first.findings == []
    assert [finding.fault for finding in second.findings] == [Fault.MISSING_CALLBACK]


async def test_a_picture_of_an_earlier_check_is_found_without_references(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.STALE_PICTURE), tmp_path) as session:
        earlier = await negative_callbacks.check_unreachable_target(session)
        later = await negative_callbacks.check_failing_target(session)
    assert earlier.findings == ()
    assert faults(later) == {Fault.STALE_PICTURE}
    assert earlier.jobs[0].job_id in later.findings[0].sentence


async def test_a_soak_finds_pictures_of_other_jobs(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.STALE_PICTURE), tmp_path) as session:
        report = await check_soak(session, rate_per_s=10, duration_s=0.7, latency_allowance=GENEROUS)
    # Five prompts in turn: the sixth and the seventh job have those of the first two, with another seed.
    assert faults(report) == {Fault.STALE_PICTURE}
    assert report.figures["jobs_with_findings"] == 2


async def test_two_swapped_pictures_among_many_are_found_and_no_others(tmp_path: Path) -> None:
    class SwapsTwo(FaultyService):
        async def _render(self, job: Any) -> None:
            seeds = {60: 61, 61: 60}
            if self.submissions > 30 and job.asked.seed in seeds:
                job.asked = job.asked.model_copy(update={"seed": seeds[job.asked.seed], "prompt": job.asked.prompt})
            await super()._render(job)

    async with session_with(SwapsTwo(workers=8), tmp_path) as session:
        report = await check_rapid_concurrent(session, 30, references=References())
    assert {trace.request["seed"] for trace in report.jobs if trace.job_id in {f.job_id for f in report.findings}} == {
        60,
        61,
    }
    assert report.verdict is Verdict.FAILED


async def test_a_bounded_queue_is_waited_for_as_long_as_its_jobs_may_take(tmp_path: Path) -> None:
    service = VariedService(Variation.BOUNDED_QUEUE, workers=1, step_s=0.1)
    patient = replace(BUDGETS, base_s=1.0, per_megapixel_step_s=60.0)
    async with session_with(service, tmp_path, budgets=patient) as session:
        report = await check_rapid_concurrent(session, 8)
    assert report.findings == ()
    assert service.submissions == 8
    # What a busy service makes one wait is not what its submit takes.
    assert report.figures["submit_p99_ms"] < 1000 * max(trace.final_s or 0.0 for trace in report.jobs)


async def test_pictures_of_many_jobs_do_not_stay_in_memory_and_can_be_had(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "memory")
        run: JobRun = await watch.run(watch.request(seed=1))
        whole = run.received
        run.release()
        assert run.received is None
        assert run.picture == whole is not None
