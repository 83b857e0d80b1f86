"""Cancellation, in each state and against each other command."""

from dataclasses import replace

import pytest

from callback.records import Cancel, JobView, Release, Submit
from callback.states import JobState
from tests.unit.callback.tracker_kit import Desk, failure, is_final, new_job, rejected


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
    submit = Submit(new_job("job-1"))
    cancel = Cancel("anyone", "job-1", submit.job.key)
    _, cancelled, claims = await desk.do_all(submit, cancel, desk.claim_command())

    assert isinstance(cancelled, JobView)
    assert cancelled.error_code == "cancelled"
    assert claims == ()
    assert desk.memory_equals_store()
