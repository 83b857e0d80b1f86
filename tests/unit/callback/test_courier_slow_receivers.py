"""Receivers that are slow or dead: whom they keep waiting, and whom not."""

import asyncio
from contextlib import ExitStack

from callback.records import Submit
from callback.states import DeliveryState
from stress.callback_server import CallbackServer
from tests.unit.callback.courier_kit import PICTURE, completed, look_for_repeats, until_entries
from tests.unit.callback.tracker_kit import BOUND_S, StartDesk, is_final, new_job


async def test_ten_slow_receivers_do_not_delay_the_first_attempt_at_another(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots=64, callback_slots_per_receiver=4)
    with ExitStack() as stack:
        slow = [stack.enter_context(CallbackServer()) for _ in range(10)]
        for server in slow:
            server.misbehave(delay_s=BOUND_S)
        count = 60
        await desk.do_all(*(Submit(new_job(f"slow-{n}", callback_url=slow[n % 10].callback_url)) for n in range(count)))
        for claim in await desk.claim(count):
            await desk.fail(claim)
        await asyncio.gather(*(server.wait_for_async(f"slow-{n}", timeout_s=BOUND_S) for n, server in enumerate(slow)))

        began = asyncio.get_running_loop().time()
        await completed(desk, receiver.callback_url, job_id="quick")
        await desk.until_settled("quick")

        assert asyncio.get_running_loop().time() - began < 5
        for server in slow:
            server.behave()


async def test_one_receiver_has_only_its_share_of_the_slots(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(callback_slots_per_receiver=3)
    receiver.misbehave(delay_s=BOUND_S)
    await desk.do_all(*(Submit(new_job(f"job-{n}", callback_url=f"{receiver.callback_url}?{n}")) for n in range(8)))
    for claim in await desk.claim(8):
        await desk.fail(claim)
    await until_entries(receiver, 3)
    await look_for_repeats(desk)
    held = len(receiver.entries())
    receiver.behave()
    for n in range(8):
        await desk.until_settled(f"job-{n}")

    assert held == 3
    assert len(receiver.entries()) == 8


async def test_an_expiry_that_comes_while_an_attempt_waits_for_its_turn_expires_it(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots_per_receiver=1, callback_timeout_s=2.0)
    receiver.misbehave(delay_s=BOUND_S)
    expiry = desk.clock.now() + 10
    first = new_job("first", callback_url=receiver.callback_url)
    second = new_job("second", callback_url=receiver.callback_url, expiry=expiry)
    await desk.do_all(Submit(first), Submit(second))
    for claim in await desk.claim(2):
        await desk.fail(claim)
    desk.clock.advance(11)

    view = await desk.until_settled("second")
    receiver.behave()

    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.final) == (DeliveryState.EXPIRED, True)
    assert [entry.job_id for entry in receiver.entries()].count("second") == 0


async def test_a_first_attempt_whose_turn_does_not_come_is_settled_within_the_timeout(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots_per_receiver=1, callback_timeout_s=2.0)
    receiver.misbehave(delay_s=BOUND_S)
    await desk.do_all(*(Submit(new_job(f"job-{n}", callback_url=receiver.callback_url)) for n in range(3)))
    for claim in await desk.claim(3):
        await desk.fail(claim)

    views = [await desk.until_settled(f"job-{n}") for n in range(3)]
    receiver.behave()

    states = sorted(view.delivery.state for view in views if view.delivery is not None)
    assert states == [DeliveryState.ERROR, DeliveryState.ERROR, DeliveryState.FAILED]
    errors = [str(view.delivery.error) for view in views if view.delivery is not None]
    assert ["busy" in error for error in errors] == [False, True, True]
    assert len(receiver.entries()) == 1


async def test_pictures_under_way_take_no_more_bytes_than_the_settings_allow(start: StartDesk) -> None:
    desk = await start(callback_bytes=len(PICTURE) * 5)  # two for first attempts: a fifth is for repeats
    with ExitStack() as stack:
        receivers = [stack.enter_context(CallbackServer()) for _ in range(5)]
        for n, server in enumerate(receivers):
            server.misbehave(delay_s=BOUND_S)
            await completed(desk, server.callback_url, job_id=f"job-{n}", content=PICTURE * 2)
        await asyncio.gather(*(receivers[n].wait_for_async(f"job-{n}", timeout_s=BOUND_S) for n in (0, 1)))
        await desk.submit("without picture", callback_url=receivers[4].callback_url)
        await desk.fail(await desk.claim_one())
        await receivers[4].wait_for_async("without picture", timeout_s=BOUND_S)
        held = [len(server.entries()) for server in receivers]
        for server in receivers:
            server.behave()
        for n in range(5):
            assert (await desk.settled_delivery(f"job-{n}")).state is DeliveryState.DELIVERED

    assert held == [1, 1, 0, 0, 1]


async def test_a_picture_larger_than_all_bytes_is_sent_all_the_same(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(callback_bytes=1)
    receiver.misbehave(times=1, answer_status=503)
    await completed(desk, receiver.callback_url)
    await desk.until_settled()
    desk.clock.advance(10)

    view = await desk.until_settled(attempts=2)

    assert view.delivery is not None
    assert view.delivery.state is DeliveryState.DELIVERED


async def test_a_first_attempt_that_finds_no_bytes_is_settled_within_the_timeout_and_repeated(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_bytes=1, callback_timeout_s=2.0)
    with CallbackServer() as slow:
        slow.misbehave(delay_s=BOUND_S)
        await completed(desk, slow.callback_url, job_id="slow")
        await completed(desk, receiver.callback_url)
        first = await desk.settled_delivery()
        slow.behave()
        await desk.until_settled("slow")
    desk.clock.advance(10)
    second = await desk.settled_delivery(attempts=2)

    assert (first.state, first.final) == (DeliveryState.ERROR, False)
    assert "the pictures of other callbacks take all the memory" in str(first.error)
    assert second.state is DeliveryState.DELIVERED


async def test_repeats_to_dead_receivers_keep_no_repeat_of_another_waiting(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots=16, callback_slots_per_receiver=8)
    with CallbackServer() as dead:
        dead.misbehave(times=20, answer_status=503)
        receiver.misbehave(times=1, answer_status=503)
        await desk.do_all(*(Submit(new_job(f"dead-{n}", callback_url=dead.callback_url)) for n in range(20)))
        for claim in await desk.claim(20):
            await desk.fail(claim)
        for n in range(20):
            await desk.until_settled(f"dead-{n}")
        dead.misbehave(delay_s=BOUND_S)
        desk.clock.advance(1)
        await completed(desk, receiver.callback_url, job_id="alive")
        await desk.until_settled("alive")

        desk.clock.advance(10)
        view = await desk.until_settled("alive", attempts=2)

        assert view.delivery is not None
        assert view.delivery.state is DeliveryState.DELIVERED
        dead.behave()


async def test_waiting_first_attempts_do_not_keep_repeats_from_being_made(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots=4, callback_slots_per_receiver=4)
    receiver.misbehave(times=1, answer_status=503)
    await completed(desk, receiver.callback_url, job_id="repeated")
    await desk.until_settled("repeated")
    with CallbackServer() as slow:
        slow.misbehave(delay_s=BOUND_S)
        await desk.do_all(*(Submit(new_job(f"slow-{n}", callback_url=slow.callback_url)) for n in range(20)))
        for claim in await desk.claim(20):
            await desk.fail(claim)
        await until_entries(slow, 4)

        desk.clock.advance(10)
        view = await desk.until_settled("repeated", attempts=2)

        assert view.delivery is not None
        assert view.delivery.state is DeliveryState.DELIVERED
        slow.behave()


async def test_a_poller_never_sees_a_final_status_without_an_outcome_before_the_bound(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_timeout_s=10.0)
    receiver.misbehave(delay_s=BOUND_S)
    await completed(desk, receiver.callback_url)
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)

    view = await desk.view()
    assert is_final(view)
    assert not view.settled(desk.clock.now())
    assert view.settled(desk.clock.now() + 10.0)
    receiver.behave()
    assert (await desk.until_settled()).settled(desk.clock.now())
