"""Deliveries that are tried again, by themselves or on request, over real connections to receivers on loopback."""

from dataclasses import replace
from typing import Any

import pytest

from callback.backoff import FIRST_DELAY_S, LAST_TRY_MARGIN_S
from callback.clock import iso
from callback.records import JobView, Redeliver, Rejected
from callback.schema import delivery_attempts
from callback.sender import Reply, Sender
from callback.states import DeliveryState
from stress.callback_server import CallbackServer
from stress.receiver.entries import EntryKind
from tests.unit.callback.courier_kit import completed, look_for_repeats, read_slowly, until_entries
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk, rejected

# ---- again and again -------------------------------------------------------------------------------------------------


async def test_a_failed_delivery_is_tried_again_when_it_is_due_and_not_before(
    desk: Desk, receiver: CallbackServer
) -> None:
    receiver.misbehave(times=3, answer_status=503)
    await completed(desk, receiver.callback_url)
    for attempt in (1, 2, 3):
        delivery = await desk.settled_delivery(attempts=attempt)
        assert delivery.next_attempt_at is not None
        desk.clock.advance(delivery.next_attempt_at - desk.clock.now() - 0.01)
        await look_for_repeats(desk)
        assert len(receiver.entries()) == attempt
        desk.clock.advance(0.02)

    delivery = await desk.settled_delivery(attempts=4)
    assert (delivery.state, delivery.attempts, delivery.final) == (DeliveryState.DELIVERED, 4, True)
    entries = receiver.entries()
    assert [entry.webhook_attempt for entry in entries] == [1, 2, 3, 4]
    assert [entry.kind for entry in entries] == [EntryKind.FIRST, *[EntryKind.REPEAT] * 3]
    log = desk.rows(delivery_attempts.select())
    assert [(row["attempt"], row["status_code"]) for row in log] == [(1, 503), (2, 503), (3, 503), (4, 200)]


async def test_retry_after_is_honoured(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(times=1, answer_status=429, answer_headers={"Retry-After": "120"})
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
    assert delivery.next_attempt_at == desk.clock.now() + 120


async def test_nothing_is_sent_after_an_expiry_in_the_past(desk: Desk, receiver: CallbackServer) -> None:
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() - 1)

    delivery = (await desk.view()).delivery
    assert delivery is not None
    assert (delivery.state, delivery.final, delivery.attempts) == (DeliveryState.EXPIRED, True, 0)
    assert receiver.entries() == ()
    assert rejected(await desk.redeliver()) == "not_redeliverable"


async def test_repeats_end_before_the_expiry_with_a_last_try_just_before_it(
    desk: Desk, receiver: CallbackServer
) -> None:
    receiver.misbehave(answer_status=503)
    expiry = desk.clock.now() + 60
    await completed(desk, receiver.callback_url, expiry=expiry)

    attempt, moments = 1, []
    while not (delivery := await desk.settled_delivery(attempts=attempt)).final:
        assert delivery.next_attempt_at is not None
        desk.clock.advance(delivery.next_attempt_at - desk.clock.now())
        moments.append(desk.clock.now())
        attempt += 1

    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, 503)
    assert 4 <= len(moments) <= 8
    assert expiry - LAST_TRY_MARGIN_S - FIRST_DELAY_S < moments[-1] < expiry


async def test_a_repeat_that_is_due_after_the_expiry_is_not_sent(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 60)
    await desk.until_settled()

    desk.clock.advance(61)
    view = await desk.until(lambda view: view.delivery is not None and view.delivery.final)

    assert view.delivery is not None
    assert view.delivery.state is DeliveryState.EXPIRED
    assert len(receiver.entries()) == 1


async def test_a_delivery_without_expiry_is_given_up_at_the_horizon(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    desk = await start(callback_horizon_s=100.0)
    await completed(desk, receiver.callback_url)
    await desk.until_settled()

    desk.clock.advance(101)
    view = await desk.until(lambda view: view.delivery is not None and view.delivery.final)

    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.attempts) == (DeliveryState.FAILED, 2)


async def test_a_far_expiry_does_not_keep_a_job_for_ever(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    desk = await start(callback_horizon_s=50.0, retention_s=100.0)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 100 * 365 * 24 * 3600)
    await desk.until_settled()

    desk.clock.advance(101)

    await desk.until(lambda view: view.delivery is not None and view.delivery.final)


async def test_nothing_is_sent_when_the_expiry_passes_while_the_attempt_is_prepared(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_slowly(desk, monkeypatch, 61)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 60)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.final, delivery.error) == (DeliveryState.EXPIRED, True, None)
    assert receiver.entries() == ()


async def test_what_is_sent_tells_the_moment_of_its_sending(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_at = desk.clock.now()
    read_slowly(desk, monkeypatch, 10)
    await completed(desk, receiver.callback_url)
    await desk.until_settled()

    (entry,) = receiver.entries()
    assert entry.webhook_timestamp == str(int(finished_at + 10))
    assert entry.completed_at == iso(finished_at)


async def test_an_attempt_may_take_until_the_expiry_and_no_longer(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts, post = [], Sender.post

    async def observed(self: Sender, *args: Any, timeout_s: float, **kwargs: Any) -> Reply:
        timeouts.append(timeout_s)
        return await post(self, *args, timeout_s=timeout_s, **kwargs)

    monkeypatch.setattr(Sender, "post", observed)
    read_slowly(desk, monkeypatch, 15)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 20)
    await desk.until_settled()

    assert timeouts == [pytest.approx(5)]


# ---- once more by request --------------------------------------------------------------------------------------------


async def test_a_callback_is_sent_again_on_request_under_its_id(desk: Desk, receiver: CallbackServer) -> None:
    await completed(desk, receiver.callback_url)
    await desk.until_settled()

    answer = await desk.redeliver()
    assert isinstance(answer, JobView)
    view = await desk.until_settled(attempts=2)

    first, second = receiver.entries()
    assert first.webhook_id == second.webhook_id
    assert (second.kind, second.webhook_attempt) == (EntryKind.REPEAT, 2)
    assert view.delivery is not None
    assert view.delivery.final


async def test_a_delivered_callback_stays_delivered_when_the_expiry_ends_its_redelivery(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 60)
    before = await desk.settled_delivery()
    read_slowly(desk, monkeypatch, 61)

    await desk.redeliver()
    delivery = await desk.settled_delivery(attempts=2)

    assert delivery == replace(before, attempts=2)
    assert delivery.state is DeliveryState.DELIVERED
    assert len(receiver.entries()) == 1
    log = desk.rows(delivery_attempts.select())
    assert [row["state"] for row in log] == [DeliveryState.DELIVERED, DeliveryState.EXPIRED]


async def test_a_request_to_send_again_that_is_repeated_sends_once(desk: Desk, receiver: CallbackServer) -> None:
    await completed(desk, receiver.callback_url)
    await desk.until_settled()

    await desk.redeliver(request_id="same")
    await desk.until_settled(attempts=2)
    await desk.redeliver(request_id="same")
    await look_for_repeats(desk)

    assert len(receiver.entries()) == 2


async def test_a_final_status_is_not_taken_back_while_its_callback_is_sent_again(
    desk: Desk, receiver: CallbackServer
) -> None:
    await completed(desk, receiver.callback_url)
    await desk.until_settled()

    answer = await desk.redeliver()

    assert isinstance(answer, JobView)
    assert answer.settled(desk.clock.now())
    assert answer.delivery is not None
    assert answer.delivery.state is DeliveryState.DELIVERED


async def test_the_back_off_of_a_redelivery_begins_anew(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    await completed(desk, receiver.callback_url)
    for attempt in range(1, 6):
        delivery = await desk.settled_delivery(attempts=attempt)
        assert delivery.next_attempt_at is not None
        desk.clock.advance(delivery.next_attempt_at - desk.clock.now())
    await desk.until_settled(attempts=6)

    await desk.redeliver()
    delivery = await desk.settled_delivery(attempts=7)
    assert delivery.next_attempt_at is not None
    assert delivery.attempts == 7
    assert delivery.next_attempt_at - desk.clock.now() < FIRST_DELAY_S * 2


async def test_a_redelivery_is_refused_while_an_attempt_is_under_way_and_taken_when_it_has_settled(
    desk: Desk, receiver: CallbackServer
) -> None:
    receiver.misbehave(delay_s=BOUND_S)
    await completed(desk, receiver.callback_url)
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)

    refused = await desk.redeliver(request_id="early")
    receiver.behave()
    await desk.until_settled()
    again = await desk.redeliver(request_id="early")
    await desk.until_settled(attempts=2)

    assert isinstance(refused, Rejected)
    assert (refused.code, refused.retryable) == ("not_redeliverable", False)
    assert "under way" in refused.message
    assert isinstance(again, JobView)
    assert len(receiver.entries()) == 2


async def test_a_redelivery_that_comes_after_its_id_was_reused_is_refused(desk: Desk, receiver: CallbackServer) -> None:
    old = await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one())
    await desk.until_settled()
    await desk.submit()

    answer = await desk.do(Redeliver("anyone", "job-1", "late", old.key))

    assert rejected(answer) == "not_redeliverable"
    assert isinstance(answer, Rejected)
    assert "later job" in answer.message
    assert len(receiver.entries()) == 1


async def test_a_redelivery_sent_again_while_its_attempt_is_under_way_answers_the_same(
    desk: Desk, receiver: CallbackServer
) -> None:
    await completed(desk, receiver.callback_url)
    await desk.until_settled()
    receiver.misbehave(delay_s=BOUND_S)
    await desk.redeliver(request_id="same")
    await until_entries(receiver, 2)

    assert isinstance(await desk.redeliver(request_id="same"), JobView)
    receiver.behave()
    await desk.until_settled(attempts=2)


async def test_there_is_nothing_to_send_again_of_an_open_job(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)

    assert rejected(await desk.redeliver()) == "not_redeliverable"


async def test_there_is_nothing_to_send_again_without_a_callback(desk: Desk) -> None:
    await desk.submit()
    await desk.complete(await desk.claim_one())

    assert rejected(await desk.redeliver()) == "not_redeliverable"
    assert rejected(await desk.redeliver("unknown")) == "job_not_found"
