"""Deliveries over real connections to receivers on loopback."""

import asyncio
import hashlib
import socket
import threading
from contextlib import ExitStack
from dataclasses import replace
from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest

from callback.backoff import FIRST_DELAY_S, LAST_TRY_MARGIN_S
from callback.clock import iso
from callback.courier import Courier
from callback.errors import StoreUnavailable
from callback.records import Claim, JobView, Picture, Rejected, Submit
from callback.schema import delivery_attempts
from callback.sender import Reply, Sender
from callback.states import DeliveryState
from stress.callback_server import CallbackServer
from stress.receiver.entries import EntryKind
from tests.unit.callback.raw_receiver import answering, answering_and_waiting, raw_receiver
from tests.unit.callback.tracker_kit import BOUND_S, PNG, Desk, StartDesk, is_final, new_job, rejected

PICTURE = PNG + bytes(range(256)) * 8192
"""2 MB with every byte value, and what looks like the end of a part."""


async def completed(desk: Desk, url: str, *, job_id: str = "job-1", content: bytes = PICTURE, **fields: Any) -> Claim:
    """Submit a job with a callback and complete it."""
    await desk.submit(job_id, callback_url=url, **fields)
    claim = await desk.claim_one()
    assert await desk.complete(claim, content) is True
    return claim


async def settled(desk: Desk, job_id: str = "job-1", *, attempts: int = 1) -> JobView:
    return await desk.until_settled(job_id, attempts=attempts)


# ---- what is sent ----------------------------------------------------------------------------------------------------


async def test_a_completed_job_is_delivered_with_its_picture(desk: Desk, receiver: CallbackServer) -> None:
    claim = await completed(desk, receiver.callback_url, secret="s3cret")
    view = await settled(desk)

    (entry,) = receiver.entries()
    assert (entry.job_id, entry.status, entry.completed_at) == ("job-1", "completed", iso(desk.clock.now()))
    assert (entry.sha256, entry.image_size) == (hashlib.sha256(PICTURE).hexdigest(), len(PICTURE))
    assert entry.image_url == "http://service/images/job-1.png"
    assert entry.provided_secret == "s3cret"
    assert (entry.webhook_id, entry.webhook_attempt) == (f"msg_{claim.key}", 1)
    assert entry.webhook_timestamp == str(int(desk.clock.now()))
    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.final, view.delivery.status_code) == (DeliveryState.DELIVERED, True, 200)
    assert "Callback received" in str(view.delivery.response_preview)


async def test_a_link_of_the_picture_store_takes_the_place_of_the_services_address(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.pictures, "link", lambda picture: f"https://store.example/{picture.key}?signed")
    claim = await completed(desk, receiver.callback_url)
    await settled(desk)

    (entry,) = receiver.entries()
    assert entry.image_url == f"https://store.example/{claim.artifact_key}?signed"
    assert entry.sha256 == hashlib.sha256(PICTURE).hexdigest()


async def test_a_failed_job_is_delivered_with_its_error_and_without_picture(
    desk: Desk, receiver: CallbackServer
) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one(), error="The prompt — häßlich — broke it.")
    await settled(desk)

    (entry,) = receiver.entries()
    assert (entry.status, entry.error) == ("failed", "The prompt — häßlich — broke it.")
    assert (entry.has_image, entry.image_url, entry.provided_secret) == (False, None, None)


async def test_a_job_that_timed_out_is_delivered_as_failed(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    desk.clock.advance(desk.config.queue_timeout_s + 1)
    await settled(desk)

    (entry,) = receiver.entries()
    assert entry.status == "failed"


async def test_the_body_is_multipart_form_data_byte_by_byte(desk: Desk) -> None:
    async with raw_receiver() as receiver:
        await completed(desk, f"{receiver.url}?token=a%2Fb", secret="s3cret")
        await settled(desk)

    (request,) = receiver.requests
    assert request.line == "POST /callback?token=a%2Fb HTTP/1.1"
    assert request.header("Host") == f"127.0.0.1:{receiver.port}"
    assert request.header("X-Callback-Secret") == "s3cret"
    assert request.header("User-Agent") == "darkroom-courier"
    content_type = str(request.header("Content-Type"))
    assert content_type.startswith("multipart/form-data; boundary=")
    parts = _parts(content_type, request.body)
    assert [name for name, _ in parts] == ["job_id", "status", "completed_at", "image", "image_url"]
    image = dict(parts)["image"]
    assert image.get_payload(decode=True) == PICTURE
    assert (image.get_content_type(), image.get_filename()) == ("image/png", "job-1.png")


def _parts(content_type: str, body: bytes) -> list[tuple[str, Message]]:
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    return [(str(part.get_param("name", header="Content-Disposition")), part) for part in parts]


async def test_environment_proxies_are_not_used(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    await completed(desk, receiver.callback_url)

    assert (await settled(desk)).delivery.state is DeliveryState.DELIVERED  # type: ignore[union-attr]


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_a_delivery(desk: Desk, receiver: CallbackServer, status: int) -> None:
    receiver.misbehave(answer_status=status)
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.DELIVERED, status, True)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 429, 500, 503])
async def test_any_other_answer_is_a_failure_that_is_tried_again(
    desk: Desk, receiver: CallbackServer, status: int
) -> None:
    headers = {"Location": f"{receiver.url}/elsewhere"}
    receiver.misbehave(times=1, answer_status=status, answer_body="not now", answer_headers=headers)
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.FAILED, status, False)
    assert (delivery.response_preview, delivery.error) == ("not now", None)
    assert delivery.next_attempt_at is not None
    assert len(receiver.entries()) == 1, "redirects are not followed"


async def test_a_receiver_that_is_gone_is_not_tried_again(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=410)
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.FAILED, 410, True)


async def test_no_answer_is_a_failure_without_a_status(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(drop_connection=True)
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
    assert "did not answer" in str(delivery.error)


async def test_nobody_listening_is_a_failure_without_a_status(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    await completed(desk, f"http://127.0.0.1:{port}/callback")

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
    assert "could not be reached" in str(delivery.error)


async def test_a_receiver_slower_than_the_timeout_is_a_failure(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(delay_s=BOUND_S)
    desk = await start(callback_timeout_s=0.3)
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
    assert "did not answer within" in str(delivery.error)
    receiver.behave()


async def test_an_answer_without_end_is_read_only_so_far(desk: Desk) -> None:
    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write("ö".encode() * 50_000)
            await writer.drain()

    async with raw_receiver(endless) as receiver:
        await completed(desk, receiver.url)
        delivery = (await settled(desk)).delivery

    assert delivery is not None
    assert (delivery.status_code, delivery.response_preview) == (500, "ö" * 500)


async def test_an_answer_in_pieces_is_shown_whole(desk: Desk) -> None:
    async def piecewise(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 11\r\n\r\n")
        for piece in (b"first", b" ", b"later"):
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(piece)

    async with raw_receiver(piecewise) as receiver:
        await completed(desk, receiver.url)
        delivery = (await settled(desk)).delivery

    assert delivery is not None
    assert delivery.response_preview == "first later"


async def test_a_status_counts_though_its_body_never_ends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.sender.PREVIEW_TIMEOUT_S", 0.1)
    over = asyncio.Event()
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    async with raw_receiver(answering_and_waiting(half, over)) as receiver:
        await completed(desk, receiver.url)
        delivery = (await settled(desk)).delivery
        over.set()

    assert delivery is not None
    assert (delivery.state, delivery.response_preview) == (DeliveryState.DELIVERED, "half")


async def test_an_answer_that_comes_before_the_whole_picture_was_read_counts(desk: Desk) -> None:
    over = asyncio.Event()
    too_large = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"
    respond = answering_and_waiting(too_large, over)
    async with raw_receiver(respond, respond_to_head=True) as receiver:
        await completed(desk, receiver.url, content=PNG + bytes(20_000_000))
        delivery = (await settled(desk)).delivery
        over.set()

    assert delivery is not None
    assert (delivery.status_code, delivery.response_preview) == (413, "too large")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x00\xff\x00\xff",
        b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nRetry-After: Fri, 99 Foo 99999 99:99:99 GMT\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_no_answer_is_so_odd_that_the_attempt_has_no_outcome(desk: Desk, answer: bytes) -> None:
    async with raw_receiver(answering(answer)) as receiver:
        await completed(desk, receiver.url)
        delivery = (await settled(desk)).delivery

    assert delivery is not None
    assert delivery.state in {DeliveryState.DELIVERED, DeliveryState.FAILED}
    assert "\x00" not in str(delivery.response_preview)


async def test_a_secret_that_cannot_be_a_header_is_an_error_and_is_not_sent(
    desk: Desk, receiver: CallbackServer
) -> None:
    await completed(desk, receiver.callback_url, secret="two\r\nlines: injected")

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code) == (DeliveryState.ERROR, None)
    assert receiver.entries() == ()


async def test_a_missing_picture_is_an_error_and_nothing_is_sent(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    claim = await desk.claim_one()
    report = desk.completion(claim)
    desk.pictures.delete(claim.artifact_key)
    await desk.do(report)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.ERROR, None, False)
    assert "picture cannot be read" in str(delivery.error)
    assert receiver.entries() == ()


async def test_an_altered_picture_is_an_error_and_nothing_is_sent(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    claim = await desk.claim_one()
    report = desk.completion(claim)
    desk.pictures.publish(claim.artifact_key, b"altered")
    await desk.do(report)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert delivery.state is DeliveryState.ERROR
    assert receiver.entries() == ()


async def test_a_picture_store_that_hangs_is_an_error_within_the_timeout(
    start: StartDesk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    desk = await start(callback_timeout_s=0.3)
    monkeypatch.setattr(desk.pictures, "read", lambda _: over.wait(BOUND_S))
    try:
        await completed(desk, receiver.callback_url)
        delivery = (await settled(desk)).delivery
    finally:
        over.set()

    assert delivery is not None
    assert delivery.state is DeliveryState.ERROR
    assert "did not answer in time" in str(delivery.error)


async def test_an_address_that_the_policy_refuses_is_an_error(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(callback_allow_loopback=False)
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code) == (DeliveryState.ERROR, None)
    assert "does not send to" in str(delivery.error)
    assert receiver.entries() == ()


# ---- again and again -------------------------------------------------------------------------------------------------


async def test_a_failed_delivery_is_tried_again_when_it_is_due_and_not_before(
    desk: Desk, receiver: CallbackServer
) -> None:
    receiver.misbehave(times=3, answer_status=503)
    await completed(desk, receiver.callback_url)
    for attempt in (1, 2, 3):
        delivery = (await settled(desk, attempts=attempt)).delivery
        assert delivery is not None
        assert delivery.next_attempt_at is not None
        desk.clock.advance(delivery.next_attempt_at - desk.clock.now() - 0.01)
        await _look(desk)
        assert len(receiver.entries()) == attempt
        desk.clock.advance(0.02)

    delivery = (await settled(desk, attempts=4)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.attempts, delivery.final) == (DeliveryState.DELIVERED, 4, True)
    entries = receiver.entries()
    assert [entry.webhook_attempt for entry in entries] == [1, 2, 3, 4]
    assert [entry.kind for entry in entries] == [EntryKind.FIRST, *[EntryKind.REPEAT] * 3]
    log = desk.rows(delivery_attempts.select())
    assert [(row["attempt"], row["status_code"]) for row in log] == [(1, 503), (2, 503), (3, 503), (4, 200)]


async def _look(desk: Desk) -> None:
    """Let the courier search the outbox once more."""
    courier = desk.tracker._courier
    courier.wake()
    async with asyncio.timeout(BOUND_S):
        while courier._wake.is_set():  # noqa: ASYNC110 - the search tells nobody that it began
            await asyncio.sleep(0)
    await desk.tracker._run(lambda _: None)


async def test_retry_after_is_honoured(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(times=1, answer_status=429, answer_headers={"Retry-After": "120"})
    await completed(desk, receiver.callback_url)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
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
    while not (delivery := (await settled(desk, attempts=attempt)).delivery).final:  # type: ignore[union-attr]
        assert delivery is not None
        assert delivery.next_attempt_at is not None
        desk.clock.advance(delivery.next_attempt_at - desk.clock.now())
        moments.append(desk.clock.now())
        attempt += 1

    assert delivery is not None
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, 503)
    assert 4 <= len(moments) <= 8
    assert expiry - LAST_TRY_MARGIN_S - FIRST_DELAY_S < moments[-1] < expiry


async def test_a_repeat_that_is_due_after_the_expiry_is_not_sent(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 60)
    await settled(desk)

    desk.clock.advance(61)
    view = await desk.until(lambda view: view.delivery is not None and view.delivery.final)

    assert view.delivery is not None
    assert view.delivery.state is DeliveryState.EXPIRED
    assert len(receiver.entries()) == 1


async def test_a_delivery_without_expiry_is_given_up_at_the_horizon(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    desk = await start(callback_horizon_s=100.0)
    await completed(desk, receiver.callback_url)
    await settled(desk)

    desk.clock.advance(101)
    view = await desk.until(lambda view: view.delivery is not None and view.delivery.final)

    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.attempts) == (DeliveryState.FAILED, 2)


async def test_a_far_expiry_does_not_keep_a_job_for_ever(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    desk = await start(callback_horizon_s=50.0, retention_s=100.0)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 100 * 365 * 24 * 3600)
    await settled(desk)

    desk.clock.advance(101)

    await desk.until(lambda view: view.delivery is not None and view.delivery.final)


async def test_nothing_is_sent_when_the_expiry_passes_while_the_attempt_is_prepared(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _read_slowly(desk, monkeypatch, 61)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 60)

    delivery = (await settled(desk)).delivery
    assert delivery is not None
    assert (delivery.state, delivery.final, delivery.error) == (DeliveryState.EXPIRED, True, None)
    assert receiver.entries() == ()


def _read_slowly(desk: Desk, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every reading of a picture take so long."""
    read = desk.pictures.read

    def slow(picture: Picture) -> bytes:
        desk.clock.advance(seconds)
        return read(picture)

    monkeypatch.setattr(desk.pictures, "read", slow)


async def test_what_is_sent_tells_the_moment_of_its_sending(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_at = desk.clock.now()
    _read_slowly(desk, monkeypatch, 10)
    await completed(desk, receiver.callback_url)
    await settled(desk)

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
    _read_slowly(desk, monkeypatch, 15)
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 20)
    await settled(desk)

    assert timeouts == [pytest.approx(5)]


# ---- once more by request --------------------------------------------------------------------------------------------


async def test_a_callback_is_sent_again_on_request_under_its_id(desk: Desk, receiver: CallbackServer) -> None:
    await completed(desk, receiver.callback_url)
    await settled(desk)

    answer = await desk.redeliver()
    assert isinstance(answer, JobView)
    view = await settled(desk, attempts=2)

    first, second = receiver.entries()
    assert first.webhook_id == second.webhook_id
    assert (second.kind, second.webhook_attempt) == (EntryKind.REPEAT, 2)
    assert view.delivery is not None
    assert view.delivery.final


async def test_a_delivered_callback_stays_delivered_when_the_expiry_ends_its_redelivery(
    desk: Desk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await completed(desk, receiver.callback_url, expiry=desk.clock.now() + 60)
    before = (await settled(desk)).delivery
    _read_slowly(desk, monkeypatch, 61)

    await desk.redeliver()
    delivery = (await settled(desk, attempts=2)).delivery

    assert before is not None
    assert delivery == replace(before, attempts=2)
    assert delivery.state is DeliveryState.DELIVERED
    assert len(receiver.entries()) == 1
    log = desk.rows(delivery_attempts.select())
    assert [row["state"] for row in log] == [DeliveryState.DELIVERED, DeliveryState.EXPIRED]


async def test_a_request_to_send_again_that_is_repeated_sends_once(desk: Desk, receiver: CallbackServer) -> None:
    await completed(desk, receiver.callback_url)
    await settled(desk)

    await desk.redeliver(request_id="same")
    await settled(desk, attempts=2)
    await desk.redeliver(request_id="same")
    await _look(desk)

    assert len(receiver.entries()) == 2


async def test_a_final_status_is_not_taken_back_while_its_callback_is_sent_again(
    desk: Desk, receiver: CallbackServer
) -> None:
    await completed(desk, receiver.callback_url)
    await settled(desk)

    answer = await desk.redeliver()

    assert isinstance(answer, JobView)
    assert answer.settled(desk.clock.now())
    assert answer.delivery is not None
    assert answer.delivery.state is DeliveryState.DELIVERED


async def test_the_back_off_of_a_redelivery_begins_anew(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    await completed(desk, receiver.callback_url)
    for attempt in range(1, 6):
        delivery = (await settled(desk, attempts=attempt)).delivery
        assert delivery is not None
        assert delivery.next_attempt_at is not None
        desk.clock.advance(delivery.next_attempt_at - desk.clock.now())
    await settled(desk, attempts=6)

    await desk.redeliver()
    delivery = (await settled(desk, attempts=7)).delivery

    assert delivery is not None
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
    await settled(desk)
    again = await desk.redeliver(request_id="early")
    await settled(desk, attempts=2)

    assert isinstance(refused, Rejected)
    assert (refused.code, refused.retryable) == ("not_redeliverable", False)
    assert "under way" in refused.message
    assert isinstance(again, JobView)
    assert len(receiver.entries()) == 2


async def test_a_redelivery_sent_again_while_its_attempt_is_under_way_answers_the_same(
    desk: Desk, receiver: CallbackServer
) -> None:
    await completed(desk, receiver.callback_url)
    await settled(desk)
    receiver.misbehave(delay_s=BOUND_S)
    await desk.redeliver(request_id="same")
    await _until_entries(receiver, 2)

    assert isinstance(await desk.redeliver(request_id="same"), JobView)
    receiver.behave()
    await settled(desk, attempts=2)


async def test_there_is_nothing_to_send_again_of_an_open_job(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)

    assert rejected(await desk.redeliver()) == "not_redeliverable"


async def test_there_is_nothing_to_send_again_without_a_callback(desk: Desk) -> None:
    await desk.submit()
    await desk.complete(await desk.claim_one())

    assert rejected(await desk.redeliver()) == "not_redeliverable"
    assert rejected(await desk.redeliver("unknown")) == "job_not_found"


# ---- slow receivers --------------------------------------------------------------------------------------------------


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
        await settled(desk, "quick")

        assert asyncio.get_running_loop().time() - began < 5
        for server in slow:
            server.behave()


async def test_one_receiver_has_only_its_share_of_the_slots(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(callback_slots_per_receiver=3)
    receiver.misbehave(delay_s=BOUND_S)
    await desk.do_all(*(Submit(new_job(f"job-{n}", callback_url=f"{receiver.callback_url}?{n}")) for n in range(8)))
    for claim in await desk.claim(8):
        await desk.fail(claim)
    await _until_entries(receiver, 3)
    await _look(desk)
    held = len(receiver.entries())
    receiver.behave()
    for n in range(8):
        await settled(desk, f"job-{n}")

    assert held == 3
    assert len(receiver.entries()) == 8


async def _until_entries(receiver: CallbackServer, count: int) -> None:
    async with asyncio.timeout(BOUND_S):
        while len(receiver.entries()) < count:  # noqa: ASYNC110 - the receiver can only be asked for one job
            await asyncio.sleep(0.005)


async def test_an_expiry_that_comes_while_an_attempt_waits_for_its_turn_expires_it(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots_per_receiver=1, callback_timeout_s=1.0)
    receiver.misbehave(delay_s=BOUND_S)
    expiry = desk.clock.now() + 10
    first = new_job("first", callback_url=receiver.callback_url)
    second = new_job("second", callback_url=receiver.callback_url, expiry=expiry)
    await desk.do_all(Submit(first), Submit(second))
    for claim in await desk.claim(2):
        await desk.fail(claim)
    desk.clock.advance(11)

    view = await settled(desk, "second")
    receiver.behave()

    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.final) == (DeliveryState.EXPIRED, True)
    assert [entry.job_id for entry in receiver.entries()].count("second") == 0


async def test_a_first_attempt_whose_turn_does_not_come_is_settled_within_the_timeout(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots_per_receiver=1, callback_timeout_s=0.5)
    receiver.misbehave(delay_s=BOUND_S)
    await desk.do_all(*(Submit(new_job(f"job-{n}", callback_url=receiver.callback_url)) for n in range(3)))
    for claim in await desk.claim(3):
        await desk.fail(claim)

    views = [await settled(desk, f"job-{n}") for n in range(3)]
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
            assert (await settled(desk, f"job-{n}")).delivery.state is DeliveryState.DELIVERED  # type: ignore[union-attr]

    assert held == [1, 1, 0, 0, 1]


async def test_a_picture_larger_than_all_bytes_is_sent_all_the_same(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(callback_bytes=1)
    receiver.misbehave(times=1, answer_status=503)
    await completed(desk, receiver.callback_url)
    await settled(desk)
    desk.clock.advance(10)

    view = await settled(desk, attempts=2)

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
        first = (await settled(desk)).delivery
        slow.behave()
        await settled(desk, "slow")
    desk.clock.advance(10)
    second = (await settled(desk, attempts=2)).delivery

    assert first is not None
    assert (first.state, first.final) == (DeliveryState.ERROR, False)
    assert "the pictures of other callbacks take all the memory" in str(first.error)
    assert second is not None
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
            await settled(desk, f"dead-{n}")
        dead.misbehave(delay_s=BOUND_S)
        desk.clock.advance(1)
        await completed(desk, receiver.callback_url, job_id="alive")
        await settled(desk, "alive")

        desk.clock.advance(10)
        view = await settled(desk, "alive", attempts=2)

        assert view.delivery is not None
        assert view.delivery.state is DeliveryState.DELIVERED
        dead.behave()


async def test_waiting_first_attempts_do_not_keep_repeats_from_being_made(
    start: StartDesk, receiver: CallbackServer
) -> None:
    desk = await start(callback_slots=4, callback_slots_per_receiver=4)
    receiver.misbehave(times=1, answer_status=503)
    await completed(desk, receiver.callback_url, job_id="repeated")
    await settled(desk, "repeated")
    with CallbackServer() as slow:
        slow.misbehave(delay_s=BOUND_S)
        await desk.do_all(*(Submit(new_job(f"slow-{n}", callback_url=slow.callback_url)) for n in range(20)))
        for claim in await desk.claim(20):
            await desk.fail(claim)
        await _until_entries(slow, 4)

        desk.clock.advance(10)
        view = await settled(desk, "repeated", attempts=2)

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
    assert (await settled(desk)).settled(desk.clock.now())


# ---- the end of the courier ------------------------------------------------------------------------------------------


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
    await settled(desk)
    await desk.tracker._courier.drain()

    desk.clock.advance(10)
    await _look(desk)

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
    await settled(desk)
    failed = asyncio.Event()
    search = Courier._begin_due

    async def broken(self: Courier) -> None:
        failed.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(Courier, "_begin_due", broken)
    await asyncio.wait_for(failed.wait(), BOUND_S)
    monkeypatch.setattr(Courier, "_begin_due", search)
    desk.clock.advance(10)

    assert (await settled(desk, attempts=2)).delivery.state is DeliveryState.DELIVERED  # type: ignore[union-attr]
