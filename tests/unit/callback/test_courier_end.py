"""The end of a courier, and what goes wrong in its loops."""

import asyncio

import pytest

from callback.courier import Courier
from callback.errors import StoreUnavailable
from callback.states import DeliveryState
from stress.callback_server import CallbackServer
from tests.unit.callback.courier_kit import completed, look_for_repeats
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk


async def test_attempts_under_way_settle_before_a_tracker_closes(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(delay_s=BOUND_S)
    claim = await completed(desk, receiver.callback_url)
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)

    closing = asyncio.create_task(desk.tracker.close())
    await asyncio.sleep(0)
    receiver.behave()
    await asyncio.wait_for(closing, BOUND_S)

    delivery = desk.stored(claim.key).delivery
    assert delivery is not None
    assert (delivery.state, delivery.final) == (DeliveryState.DELIVERED, True)


async def test_an_attempt_that_is_cut_off_by_the_end_is_repeated_by_the_successor(
    desk: Desk, start: StartDesk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callback.courier.DRAIN_S", 0.05)
    receiver.misbehave(times=1, delay_s=BOUND_S)
    await completed(desk, receiver.callback_url)
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)
    await asyncio.wait_for(desk.tracker.close(), BOUND_S)

    successor = await start()
    view = await successor.until_settled(attempts=2)

    assert view.delivery is not None
    assert view.delivery.state is DeliveryState.DELIVERED
    receiver.behave()


async def test_a_first_attempt_that_comes_after_the_end_began_is_left_to_the_successor(
    desk: Desk, start: StartDesk, receiver: CallbackServer
) -> None:
    receiver.misbehave(delay_s=BOUND_S)
    await completed(desk, receiver.callback_url)
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)
    draining = asyncio.create_task(desk.tracker._courier.drain())
    await asyncio.sleep(0)

    late = await completed(desk, receiver.callback_url, job_id="late")
    assert desk.tracker._courier.under_way == 1
    receiver.behave()
    await asyncio.wait_for(draining, BOUND_S)
    delivery = desk.stored(late.key).delivery
    assert delivery is not None
    assert (delivery.state, delivery.first_settled_at) == (DeliveryState.PENDING, None)
    await asyncio.wait_for(desk.tracker.close(), BOUND_S)

    await (await start()).until_settled("late", attempts=2)
    assert [entry.webhook_attempt for entry in receiver.entries() if entry.job_id == "late"] == [2]


async def test_no_repeat_is_begun_after_the_end_began(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(times=1, answer_status=503)
    await completed(desk, receiver.callback_url)
    await desk.until_settled()
    await desk.tracker._courier.drain()

    desk.clock.advance(10)
    await look_for_repeats(desk)

    assert len(receiver.entries()) == 1
    delivery = (await desk.view()).delivery
    assert delivery is not None
    assert delivery.attempts == 1


@pytest.mark.parametrize("error", [RuntimeError("secret-host:5432 refused"), StoreUnavailable("secret-host refused")])
async def test_what_goes_wrong_with_repeats_is_told_without_its_details(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failed = asyncio.Event()

    async def broken(self: Courier) -> None:
        failed.set()
        raise error

    monkeypatch.setattr(Courier, "_begin_due", broken)
    await asyncio.wait_for(failed.wait(), BOUND_S)

    assert (await desk.tracker.health()).degraded == (f"Callbacks cannot be repeated ({type(error).__name__}).",)


async def test_a_bug_in_one_search_does_not_end_all_repeats(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.misbehave(times=1, answer_status=503)
    await completed(desk, receiver.callback_url)
    await desk.until_settled()
    failed = asyncio.Event()
    search = Courier._begin_due

    async def broken(self: Courier) -> None:
        failed.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(Courier, "_begin_due", broken)
    await asyncio.wait_for(failed.wait(), BOUND_S)
    monkeypatch.setattr(Courier, "_begin_due", search)
    desk.clock.advance(10)

    assert (await desk.settled_delivery(attempts=2)).state is DeliveryState.DELIVERED
