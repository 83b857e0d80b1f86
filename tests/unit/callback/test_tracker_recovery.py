"""What survives a tracker that ends abruptly."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from callback.schema import jobs
from callback.states import DeliveryState, JobState
from stress.callback_server import CallbackServer
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk, crash, is_final


async def test_waiting_jobs_keep_their_order_over_a_restart(desk: Desk, start: StartDesk) -> None:
    for n in range(5):
        await desk.submit(f"job-{n}")
    await crash(desk.tracker)

    successor = await start()
    await successor.submit("later")

    assert [claim.job_id for claim in await successor.claim(9)] == [*(f"job-{n}" for n in range(5)), "later"]


async def test_a_running_attempt_goes_on_over_a_restart(desk: Desk, start: StartDesk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.renew(claim, step=2)
    await crash(desk.tracker)

    successor = await start()
    successor.clock.advance(successor.config.lease_s - 1)
    assert await successor.renew(claim, step=3) == ()
    successor.clock.advance(successor.config.lease_s - 1)

    assert await successor.complete(claim) is True
    assert (await successor.view()).state is JobState.COMPLETED


async def test_a_running_attempt_that_is_not_heard_of_again_goes_back_to_the_queue(
    desk: Desk, start: StartDesk
) -> None:
    await desk.submit()
    await desk.claim_one()
    await crash(desk.tracker)

    successor = await start()
    successor.clock.advance(successor.config.lease_s + 1)

    assert (await successor.until(lambda view: view.state is JobState.QUEUED)).attempt == 1
    assert (await successor.claim_one()).attempt == 2


async def test_a_running_attempt_is_not_taken_for_a_waiting_one_after_a_restart(start: StartDesk) -> None:
    desk = await start(queue_timeout_s=10.0)
    await desk.submit()
    claim = await desk.claim_one()
    await desk.renew(claim)
    await desk.submit("waiting")
    await crash(desk.tracker)
    desk.clock.advance(11)

    successor = await start(queue_timeout_s=10.0)
    await successor.until(is_final, "waiting")

    assert await successor.complete(claim) is True


async def test_a_running_attempt_is_not_taken_for_a_waiting_one_though_the_store_fails_after_the_restart(
    start: StartDesk,
) -> None:
    desk = await start(queue_timeout_s=10.0)
    await desk.submit()
    claim = await desk.claim_one()
    await crash(desk.tracker)
    desk.clock.advance(11)
    successor = await start(queue_timeout_s=10.0)

    await successor.tracker._lifecycle.recover()
    await successor.tracker._lifecycle.expire()

    assert (await successor.view()).state is JobState.PROCESSING
    assert await successor.complete(claim) is True


async def test_the_start_of_an_attempt_is_recorded_though_its_tracker_died(desk: Desk, start: StartDesk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.renew(claim)
    started_at = desk.clock.now()
    await crash(desk.tracker)
    successor = await start()
    successor.clock.advance(5)

    await successor.do(replace(successor.completion(claim), started_at=started_at))

    assert (await successor.view()).started_at == started_at


async def test_a_claim_whose_answer_was_lost_is_answered_by_the_successor(desk: Desk, start: StartDesk) -> None:
    await desk.submit()
    command = desk.claim_command()
    first = await desk.do(command)
    await crash(desk.tracker)

    successor = await start()

    assert await successor.do(command) == first


async def test_a_cancellation_outlives_its_tracker(desk: Desk, start: StartDesk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.cancel()
    await crash(desk.tracker)

    successor = await start()

    assert (await successor.view()).cancel_requested
    await successor.complete(claim)
    assert (await successor.view()).error_code == "cancelled"


async def test_a_delivery_that_was_being_sent_is_repeated_under_its_id(
    start: StartDesk, receiver: CallbackServer
) -> None:
    receiver.misbehave(delay_s=BOUND_S)
    desk = await start()
    await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one())
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)
    await crash(desk.tracker)
    receiver.behave()

    successor = await start()
    view = await successor.until(lambda view: view.delivery is not None and view.delivery.final)

    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.attempts) == (DeliveryState.DELIVERED, 2)
    first, second = receiver.entries_for("job-1")
    assert first.webhook_id == second.webhook_id == view.delivery.webhook_id
    assert (first.webhook_attempt, second.webhook_attempt) == (1, 2)


async def test_jobs_are_durable_before_their_answer_whatever_ends_the_process(store_url: str, start: StartDesk) -> None:
    script = Path(__file__).with_name("submitting_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        store_url,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    accepted = []
    async with asyncio.timeout(60):
        while len(accepted) < 200:
            accepted.append((await process.stdout.readline()).decode().strip())
        process.send_signal(signal.SIGKILL)
        rest = (await process.stdout.read()).decode()
        await process.wait()
    accepted += rest[: rest.rfind("\n") + 1].split()

    desk = await start()

    held = {row["job_id"] for row in desk.rows(sa.select(jobs.c.job_id))}
    assert set(accepted) <= held
    assert desk.memory_equals_store()
