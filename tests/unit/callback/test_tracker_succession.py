"""A tracker that is replaced by a successor, or closed."""

import asyncio

import pytest
import sqlalchemy as sa

from callback.errors import TrackerUnavailable
from callback.records import PROTOCOL_VERSION, Cursor, JobView, Release, Submit
from callback.schema import delivery_attempts, jobs, tracker_owner
from callback.tracker import JobTracker
from stress.callback_server import CallbackServer
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk, failure, new_job, rejected


async def test_a_tracker_that_was_replaced_changes_nothing(desk: Desk, start: StartDesk) -> None:
    deposed = []
    desk.tracker._on_deposed = lambda: deposed.append(True)
    await desk.submit("waiting")
    await desk.submit("running", model="flux")
    (claim,) = await desk.claim(model="flux")
    cancellation = await desk.cancellation("waiting")
    successor = await start()
    before = successor.rows(jobs.select().order_by(jobs.c.seq))

    answers = [
        await desk.do(Submit(new_job("late"))),
        await desk.do(desk.claim_command()),
        await desk.do(failure(claim)),
        await desk.do(Release(claim.key, claim.attempt, True, "late")),
        await desk.do(cancellation),
    ]

    assert {rejected(answer) for answer in answers} <= {"deposed", "unavailable"}
    assert deposed
    assert successor.rows(jobs.select().order_by(jobs.c.seq)) == before
    assert (await successor.claim_one()).job_id == "waiting"


async def test_a_tracker_that_was_replaced_records_no_delivery(
    desk: Desk, start: StartDesk, receiver: CallbackServer
) -> None:
    receiver.misbehave(times=1, delay_s=BOUND_S)
    await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one())
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)

    successor = await start()
    repeated = await successor.until(lambda view: view.delivery is not None and view.delivery.final)
    receiver.behave()
    await asyncio.wait_for(desk.tracker._courier.drain(), BOUND_S)

    assert repeated.delivery is not None
    assert repeated.delivery.attempts == 2
    assert await successor.view() == repeated
    assert [row["attempt"] for row in successor.rows(delivery_attempts.select())] == [2]


async def test_a_tracker_that_was_replaced_repeats_no_delivery(
    desk: Desk, start: StartDesk, receiver: CallbackServer
) -> None:
    receiver.misbehave(answer_status=500)
    await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one())
    await desk.until_settled()
    successor = await start()

    desk.clock.advance(5)
    view = await successor.until_settled(attempts=2)

    assert view.delivery is not None
    assert [entry.webhook_attempt for entry in receiver.entries()] == [1, 2]
    assert [row["attempt"] for row in successor.rows(delivery_attempts.select())] == [1, 2]


async def test_a_tracker_that_was_replaced_is_told_at_its_next_tick(desk: Desk, start: StartDesk) -> None:
    deposed = asyncio.Event()
    desk.tracker._on_deposed = deposed.set

    await start()

    await asyncio.wait_for(deposed.wait(), BOUND_S)
    assert not (await desk.tracker.health()).accepting


async def test_each_tracker_has_a_higher_epoch_than_the_one_before(desk: Desk, start: StartDesk) -> None:
    first = (await desk.tracker.identity()).epoch
    second = (await (await start()).tracker.identity()).epoch

    assert second == first + 1
    assert [row["epoch"] for row in desk.rows(tracker_owner.select())] == [second]


async def test_a_closed_tracker_refuses_and_does_not_come_back(desk: Desk) -> None:
    await desk.submit()
    await desk.tracker.close()

    assert rejected(await desk.do(Submit(new_job("late")))) == "unavailable"
    with pytest.raises(TrackerUnavailable):
        await desk.tracker.changes(Cursor(), 0.1)
    with pytest.raises(TrackerUnavailable):
        await desk.tracker.start()


async def test_a_tracker_that_is_closed_before_it_has_started_does_not_depose_its_successor(
    desk: Desk, start: StartDesk
) -> None:
    late = JobTracker(desk.config, desk.pictures, clock=desk.clock)
    await late.close()

    with pytest.raises(TrackerUnavailable):
        await late.get("anyone", "job-1")
    assert rejected((await late.execute(PROTOCOL_VERSION, (Submit(new_job()),)))[0]) == "unavailable"
    assert not (await late.health()).accepting
    assert isinstance(await desk.submit(), JobView)


async def test_commands_that_are_under_way_when_a_tracker_is_closed_are_answered(desk: Desk) -> None:
    commands = [asyncio.create_task(desk.do(Submit(new_job(f"job-{n}")))) for n in range(50)]
    await asyncio.sleep(0)
    await desk.tracker.close()

    answers = await asyncio.wait_for(asyncio.gather(*commands), BOUND_S)

    stored = {row["job_id"] for row in desk.rows(sa.select(jobs.c.job_id))}
    assert {answer.job_id for answer in answers if isinstance(answer, JobView)} == stored
