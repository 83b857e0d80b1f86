"""Claims, reports, and attempts that are given back."""

import json
import logging
from dataclasses import replace

import pytest

from callback.records import Claim, Finish, Release
from callback.schema import deliveries, jobs
from callback.states import JobState
from observability.logs import JsonFormatter
from tests.unit.callback.tracker_kit import (
    UNROUTED,
    Desk,
    StartDesk,
    failure,
    rejected,
)

# ---- claims ----------------------------------------------------------------------------------------------------------


async def test_jobs_are_claimed_in_the_order_of_their_submission(desk: Desk) -> None:
    for n in range(4):
        await desk.submit(f"job-{n}")

    claims = await desk.claim(3)

    assert [claim.job_id for claim in claims] == ["job-0", "job-1", "job-2"]
    assert {claim.attempt for claim in claims} == {1}
    assert [claim.job_id for claim in await desk.claim(3)] == ["job-3"]
    assert await desk.claim(3) == ()


async def test_models_have_queues_of_their_own(desk: Desk) -> None:
    await desk.submit("a", model="sd")
    await desk.submit("b", model="flux")

    assert [claim.job_id for claim in await desk.claim(5, model="flux")] == ["b"]
    assert await desk.claim(5, model="unknown") == ()


async def test_a_claim_sent_again_gets_the_same_jobs(desk: Desk) -> None:
    for n in range(3):
        await desk.submit(f"job-{n}")
    command = desk.claim_command(2)

    first = await desk.do(command)

    assert await desk.do(command) == first
    assert [claim.job_id for claim in await desk.claim(5)] == ["job-2"]


async def test_a_claim_sent_twice_at_once_gets_the_same_jobs(desk: Desk) -> None:
    for n in range(3):
        await desk.submit(f"job-{n}")
    command = desk.claim_command(2)

    first, second = await desk.do_all(command, command)

    assert first == second
    assert isinstance(first, tuple)
    assert len(first) == 2


async def test_claims_of_two_holders_at_once_share_no_job(desk: Desk) -> None:
    for n in range(4):
        await desk.submit(f"job-{n}")

    one, other = await desk.do_all(desk.claim_command(3), replace(desk.claim_command(3), holder="dispatcher-2"))

    assert isinstance(one, tuple)
    assert isinstance(other, tuple)
    assert sorted(claim.job_id for claim in (*one, *other) if isinstance(claim, Claim)) == [
        f"job-{n}" for n in range(4)
    ]


# ---- reports ---------------------------------------------------------------------------------------------------------


async def test_a_finished_job_shows_its_picture_and_result(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    report = desk.completion(claim)

    assert await desk.do(report) is True

    view = await desk.view()
    assert (view.state, view.picture, view.result_json) == (JobState.COMPLETED, report.picture, '{"seed": 1}')
    assert view.finished_at == desk.clock.now()


async def test_the_log_has_one_line_of_a_job(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "darkroom.jobs"):
        job = await desk.submit()
        desk.clock.advance(2.5)
        claim = await desk.claim_one()
        await desk.do_all(desk.completion(claim), desk.completion(claim))

    (line,) = [record for record in caplog.records if record.name == "darkroom.jobs"]
    told = json.loads(JsonFormatter().format(line))
    assert told.pop("time")
    assert told == {
        "level": "info",
        "logger": "darkroom.jobs",
        "message": "job ended",
        "job_id": "job-1",
        "key": job.key,
        "seq": 1,
        "model": "sd",
        "attempt": 1,
        "state": "completed",
        "error_code": None,
        "seconds": 2.5,
    }


async def test_a_report_sent_again_answers_the_same(desk: Desk) -> None:
    await desk.submit()
    report = desk.completion(await desk.claim_one())

    assert await desk.do_all(report, report) == (True, True)
    ended = await desk.view()
    desk.clock.advance(5)
    assert await desk.do(report) is True
    assert await desk.view() == ended


async def test_a_late_report_of_an_old_attempt_changes_nothing(desk: Desk) -> None:
    await desk.submit()
    old = await desk.claim_one()
    await desk.release(old)
    new = await desk.claim_one()
    before = await desk.view()

    late = (desk.completion(old), failure(old), Release(old.key, old.attempt, True, "late"))
    assert await desk.do_all(*late) == (False, False, False)

    assert await desk.view() == before
    assert await desk.complete(new) is True
    assert await desk.do_all(*late) == (False, False, False)
    assert (await desk.view()).attempt == 2


async def test_a_report_of_a_waiting_job_changes_nothing(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.release(claim)

    assert await desk.complete(claim) is False
    assert (await desk.view()).state is JobState.QUEUED


async def test_a_report_of_an_unknown_job_answers_false(desk: Desk) -> None:
    assert await desk.do(Finish("nobody", 1, JobState.FAILED)) is False
    assert await desk.do(Release("nobody", 1, False, "")) is False


async def test_two_outcomes_of_one_attempt_end_the_job_once(desk: Desk) -> None:
    await desk.submit(callback_url=UNROUTED)
    claim = await desk.claim_one()

    answers = await desk.do_all(desk.completion(claim), failure(claim))

    assert sorted(map(str, answers)) == ["False", "True"]
    assert (await desk.view()).state is (JobState.COMPLETED if answers[0] else JobState.FAILED)
    assert len(desk.rows(deliveries.select())) == 1


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PROCESSING])
async def test_a_report_with_an_open_state_is_no_outcome(desk: Desk, state: JobState) -> None:
    await desk.submit()
    claim = await desk.claim_one()

    assert rejected(await desk.do(Finish(claim.key, claim.attempt, state))) == "internal_error"
    assert (await desk.view()).state is JobState.PROCESSING


async def test_a_completion_without_a_picture_is_no_completion(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()

    assert rejected(await desk.do(Finish(claim.key, claim.attempt, JobState.COMPLETED))) == "internal_error"
    assert (await desk.view()).state is JobState.PROCESSING


async def test_an_error_with_characters_that_no_database_holds_is_recorded(desk: Desk) -> None:
    await desk.submit()

    assert await desk.fail(await desk.claim_one(), error="bad\x00byte \udcff") is True

    assert (await desk.view()).error == "bad\N{REPLACEMENT CHARACTER}byte \N{REPLACEMENT CHARACTER}"


async def test_progress_shows_at_once_and_costs_no_transaction(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()

    assert await desk.renew(claim, stage="denoising", step=3) == ()

    view = await desk.view()
    assert (view.stage, view.step, view.steps, view.started_at) == ("denoising", 3, 4, desk.clock.now())
    assert desk.stored(claim.key).started_at is None


async def test_the_start_of_rendering_is_recorded_with_the_end(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.renew(claim)
    started_at = desk.clock.now()
    desk.clock.advance(7)

    await desk.complete(claim)

    view = await desk.view()
    assert (view.started_at, view.finished_at) == (started_at, started_at + 7)


# ---- attempts that are given back ------------------------------------------------------------------------------------


async def test_a_released_job_is_the_next_one_again(desk: Desk) -> None:
    await desk.submit("first")
    await desk.submit("second")
    claim = await desk.claim_one()
    await desk.renew(claim, step=2)

    assert await desk.release(claim) is True

    view = await desk.view("first")
    assert (view.state, view.stage, view.step, view.started_at) == (JobState.QUEUED, None, 0, None)
    again = await desk.claim_one()
    assert (again.job_id, again.attempt) == ("first", 2)
    assert again.artifact_key != claim.artifact_key


async def test_a_release_sent_again_answers_the_same_and_blames_once(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    release = Release(claim.key, claim.attempt, True, "the replica ended")

    assert await desk.do_all(release, release) == (True, True)
    assert await desk.do(release) is True

    (row,) = desk.rows(jobs.select())
    assert (row["state"], row["blamed"]) == (JobState.QUEUED, 1)


async def test_a_job_that_ends_three_replicas_is_poisoned(desk: Desk) -> None:
    await desk.submit()
    for _ in range(2):
        assert await desk.release(await desk.claim_one(), blamed=True) is True
        assert (await desk.view()).state is JobState.QUEUED

    last = await desk.claim_one()
    assert await desk.release(last, blamed=True) is True

    view = await desk.view()
    assert (view.state, view.error_code, view.attempt) == (JobState.FAILED, "poisoned", 3)
    assert "3 times" in str(view.error)
    assert await desk.claim() == ()
    assert await desk.release(last, blamed=True) is True


async def test_attempts_that_nobody_is_to_blame_for_do_not_count(desk: Desk) -> None:
    await desk.submit()
    for _ in range(5):
        await desk.release(await desk.claim_one(), blamed=False)

    assert (await desk.claim_one()).attempt == 6


async def test_blame_survives_a_restart(desk: Desk, start: StartDesk) -> None:
    await desk.submit()
    for _ in range(2):
        await desk.release(await desk.claim_one(), blamed=True)
    successor = await start()

    await successor.release(await successor.claim_one(), blamed=True)

    assert (await successor.view()).error_code == "poisoned"
