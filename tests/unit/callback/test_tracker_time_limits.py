"""Leases, and the limits of a job's time."""

import pytest

from callback.records import Cancel, JobView, Submit
from callback.states import JobState
from tests.unit.callback.tracker_kit import UNROUTED, Desk, StartDesk, is_final, new_job


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
    await desk.do_all(*(Submit(new_job(f"job-{n}")) for n in range(count)))

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
