"""Claims, leases, reports, cancellation and time limits."""

import json
import logging
from dataclasses import replace

import pytest

from callback.records import Cancel, Claim, Finish, JobView, Release, Submit
from callback.schema import deliveries, jobs
from callback.states import JobState
from observability.logs import JsonFormatter
from tests.unit.callback.tracker_kit import UNROUTED, Desk, StartDesk, failure, is_final, new_job, rejected

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


# ---- leases and time limits ------------------------------------------------------------------------------------------


async def test_a_job_whose_lease_ran_out_is_the_next_one_again(desk: Desk) -> None:
    await desk.submit("first")
    await desk.submit("second")
    claim = await desk.claim_one()

    desk.clock.advance(desk.config.lease_s + 1)
    await desk.until(lambda view: view.state is JobState.QUEUED, "first")

    assert await desk.renew(claim) == (claim.key,)
    again = await desk.claim_one()
    assert (again.job_id, again.attempt) == ("first", 2)
    assert await desk.complete(claim) is False


async def test_a_renewed_lease_does_not_run_out(desk: Desk) -> None:
    await desk.submit("kept")
    await desk.submit("lost")
    kept, lost = await desk.claim(2)
    desk.clock.advance(desk.config.lease_s - 1)
    await desk.renew(kept)
    desk.clock.advance(2)

    await desk.until(lambda view: view.state is JobState.QUEUED, "lost")

    assert (await desk.view("kept")).state is JobState.PROCESSING
    assert await desk.renew(lost) == (lost.key,)


async def test_a_job_that_waits_too_long_times_out(desk: Desk) -> None:
    await desk.submit(callback_url=UNROUTED)

    desk.clock.advance(desk.config.queue_timeout_s + 1)
    view = await desk.until(is_final)

    assert (view.state, view.error_code) == (JobState.TIMEOUT, "queue_timeout")
    assert view.delivery is not None
    assert view.delivery.payload_status == "failed"


@pytest.mark.parametrize("step_s", [7200.0, -7200.0])
async def test_a_machine_whose_clock_is_set_loses_no_lease_and_times_nothing_out(desk: Desk, step_s: float) -> None:
    await desk.submit("running")
    await desk.submit("canary", model="flux")
    claim = await desk.claim_one()
    await desk.submit("waiting")

    desk.clock.set_wall(step_s)
    # The tick that takes the canary's lease has looked at the others too.
    (canary,) = await desk.claim(model="flux")
    desk.clock.advance(desk.config.lease_s - 1)
    await desk.renew(claim)
    desk.clock.advance(2)
    await desk.until(lambda view: view.state is JobState.QUEUED, canary.job_id)

    assert (await desk.view("running")).state is JobState.PROCESSING
    assert (await desk.view("waiting")).state is JobState.QUEUED
    assert await desk.complete(claim) is True


async def test_a_store_that_fails_after_the_clock_was_set_times_nothing_out(desk: Desk) -> None:
    await desk.submit("waiting")
    desk.clock.set_wall(desk.config.queue_timeout_s + 1)

    await desk.tracker._lifecycle.recover()
    await desk.tracker._lifecycle.expire()

    assert (await desk.view("waiting")).state is JobState.QUEUED


async def test_commands_of_an_older_ingress_replica_name_no_job_and_are_carried_out(desk: Desk) -> None:
    job = await desk.submit()
    older = object.__new__(Cancel)
    older.__setstate__(["anyone", "job-1"])

    cancelled = await desk.do(older)

    assert isinstance(cancelled, JobView)
    assert (cancelled.key, cancelled.error_code) == (job.key, "cancelled")


async def test_a_claimed_job_that_does_not_begin_times_out_too(start: StartDesk) -> None:
    desk = await start(queue_timeout_s=10.0)
    await desk.submit()
    claim = await desk.claim_one()
    await desk.renew(claim, started=False)

    desk.clock.advance(11)
    view = await desk.until(is_final)

    assert view.error_code == "queue_timeout"
    assert await desk.complete(claim) is False


async def test_time_in_the_queue_ends_when_rendering_begins(start: StartDesk) -> None:
    desk = await start(queue_timeout_s=10.0)
    await desk.submit()
    await desk.submit("waiting")
    claim = await desk.claim_one()
    await desk.renew(claim)

    desk.clock.advance(11)
    await desk.until(is_final, "waiting")

    assert (await desk.view()).state is JobState.PROCESSING
    assert await desk.complete(claim) is True


async def test_a_job_whose_replica_died_may_wait_the_whole_limit_again(start: StartDesk) -> None:
    desk = await start(queue_timeout_s=10.0)
    await desk.submit()
    desk.clock.advance(9)
    claim = await desk.claim_one()
    await desk.renew(claim)
    await desk.submit("canary")
    desk.clock.advance(9)
    await desk.release(claim, blamed=True)

    desk.clock.advance(5)
    await desk.until(is_final, "canary")
    assert (await desk.claim_one()).job_id == "job-1"
    assert desk.memory_equals_store()


async def test_many_jobs_time_out_in_few_transactions(start: StartDesk) -> None:
    desk = await start()
    count = 300
    await desk.do_all(*(_submit(n) for n in range(count)))

    desk.clock.advance(desk.config.queue_timeout_s + 1)
    await desk.until(is_final, f"job-{count - 1}")

    assert desk.memory_equals_store()
    page = await desk.tracker.jobs("anyone", (JobState.TIMEOUT,), None, count)
    assert len(page.views) == count


async def test_expired_jobs_are_shed_when_the_settings_say_so(start: StartDesk) -> None:
    desk = await start(shed_expired=True)
    await desk.submit(expiry=desk.clock.now() + 5, callback_url=UNROUTED)

    desk.clock.advance(6)
    view = await desk.until(is_final)

    assert (view.state, view.error_code) == (JobState.FAILED, "expired")
    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.final, view.delivery.attempts) == ("expired", True, 0)


async def test_expired_jobs_are_rendered_when_the_settings_do_not_say_otherwise(desk: Desk) -> None:
    await desk.submit(expiry=desk.clock.now() - 5, callback_url=UNROUTED)

    await desk.complete(await desk.claim_one())

    view = await desk.view()
    assert view.state is JobState.COMPLETED
    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.final, view.delivery.attempts) == ("expired", True, 0)
    assert view.settled(desk.clock.now())


# ---- cancellation ----------------------------------------------------------------------------------------------------


async def test_a_waiting_job_is_cancelled_at_once(desk: Desk) -> None:
    await desk.submit()

    view = await desk.cancel()

    assert isinstance(view, JobView)
    assert (view.state, view.error_code) == (JobState.FAILED, "cancelled")
    assert await desk.claim() == ()


async def test_a_cancellation_sent_again_answers_the_same(desk: Desk) -> None:
    await desk.submit()

    command = await desk.cancellation()
    first, second = await desk.do_all(command, command)

    assert first == second == await desk.cancel()


async def test_a_running_job_is_asked_to_stop_and_ends_when_its_replica_has(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()

    asked = await desk.cancel()
    assert isinstance(asked, JobView)
    assert (asked.state, asked.cancel_requested) == (JobState.PROCESSING, True)
    assert await desk.cancel() == asked

    assert await desk.do(replace(failure(claim), error_code="cancelled")) is True
    ended = await desk.cancel()
    assert isinstance(ended, JobView)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "cancelled")


async def test_a_picture_that_comes_after_a_cancellation_is_not_shown(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.cancel()

    report = desk.completion(claim)
    assert await desk.do(report) is True
    assert await desk.do(report) is True

    view = await desk.view()
    assert (view.state, view.error_code, view.picture) == (JobState.FAILED, "cancelled", None)


async def test_a_cancelled_job_that_is_given_back_does_not_return_to_the_queue(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()

    await desk.do_all(await desk.cancellation(), Release(claim.key, claim.attempt, False, "the replica ended"))

    assert (await desk.view()).error_code == "cancelled"
    assert desk.memory_equals_store()


async def test_a_cancelled_job_whose_dispatcher_is_gone_ends_with_its_lease(desk: Desk) -> None:
    await desk.submit()
    await desk.claim_one()
    await desk.cancel()

    desk.clock.advance(desk.config.lease_s + 1)

    assert (await desk.until(is_final)).error_code == "cancelled"


async def test_a_final_job_cannot_be_cancelled(desk: Desk) -> None:
    await desk.submit()
    await desk.complete(await desk.claim_one())

    assert rejected(await desk.cancel()) == "not_cancellable"
    assert (await desk.view()).state is JobState.COMPLETED


async def test_an_unknown_job_cannot_be_cancelled(desk: Desk) -> None:
    theirs = await desk.submit(owner="another")

    assert rejected(await desk.cancel()) == "job_not_found"
    assert rejected(await desk.do(Cancel("anyone", "job-1", theirs.key))) == "job_not_found"
    assert (await desk.claim_one()).key == theirs.key


async def test_a_cancellation_that_comes_again_after_its_id_was_reused_leaves_the_new_job_alone(desk: Desk) -> None:
    await desk.submit()
    command = await desk.cancellation()
    first = await desk.do(command)
    new = await desk.submit()

    assert await desk.do(command) == first
    assert await desk.view() == new
    assert (await desk.claim_one()).key == new.key


async def test_a_cancellation_that_comes_late_after_its_id_was_reused_leaves_the_new_job_alone(desk: Desk) -> None:
    await desk.submit()
    command = await desk.cancellation()
    await desk.complete(await desk.claim_one())
    new = await desk.submit()

    assert rejected(await desk.do(command)) == "not_cancellable"
    assert (await desk.claim_one()).key == new.key


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancel_and_claim_at_once_agree(desk: Desk, cancel_first: bool) -> None:
    await desk.submit()
    commands = (await desk.cancellation(), desk.claim_command())

    answers = await desk.do_all(*(commands if cancel_first else commands[::-1]))
    cancelled, claims = answers if cancel_first else answers[::-1]

    assert isinstance(cancelled, JobView)
    view = await desk.view()
    if claims == ():
        assert view.error_code == cancelled.error_code == "cancelled"
    else:
        assert (view.state, view.cancel_requested, cancelled.cancel_requested) == (JobState.PROCESSING, True, True)
    assert desk.memory_equals_store()


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancel_and_finish_at_once_agree(desk: Desk, cancel_first: bool) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    commands = (await desk.cancellation(), desk.completion(claim))

    answers = await desk.do_all(*(commands if cancel_first else commands[::-1]))
    cancelled, _ = answers if cancel_first else answers[::-1]

    view = await desk.view()
    if isinstance(cancelled, JobView):
        assert view.error_code == "cancelled"
    else:
        assert (rejected(cancelled), view.state) == ("not_cancellable", JobState.COMPLETED)
    assert desk.memory_equals_store()


async def test_submit_cancel_and_claim_at_once_agree(desk: Desk) -> None:
    submit = _submit(1)
    cancel = Cancel("anyone", "job-1", submit.job.key)
    _, cancelled, claims = await desk.do_all(submit, cancel, desk.claim_command())

    assert isinstance(cancelled, JobView)
    assert cancelled.error_code == "cancelled"
    assert claims == ()
    assert desk.memory_equals_store()


def _submit(n: int) -> Submit:
    return Submit(new_job(f"job-{n}"))
