"""One attempt at a delivery, over a real connection to a receiver on loopback: what is sent, and how it ends."""

import asyncio
import hashlib
import socket
import threading
from email import message_from_bytes
from email.message import Message

import pytest

from callback.clock import iso
from callback.states import DeliveryState
from stress.callback_server import CallbackServer
from tests.unit.callback.courier_kit import PICTURE, completed, look_for_repeats
from tests.unit.callback.raw_receiver import answering, answering_and_waiting, raw_receiver
from tests.unit.callback.tracker_kit import BOUND_S, PNG, Desk, StartDesk


async def test_a_completed_job_is_delivered_with_its_picture(desk: Desk, receiver: CallbackServer) -> None:
    claim = await completed(desk, receiver.callback_url, secret="s3cret")
    view = await desk.until_settled()

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
    await desk.until_settled()

    (entry,) = receiver.entries()
    assert entry.image_url == f"https://store.example/{claim.artifact_key}?signed"
    assert entry.sha256 == hashlib.sha256(PICTURE).hexdigest()


async def test_a_failed_job_is_delivered_with_its_error_and_without_picture(
    desk: Desk, receiver: CallbackServer
) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one(), error="The prompt — häßlich — broke it.")
    await desk.until_settled()

    (entry,) = receiver.entries()
    assert (entry.status, entry.error) == ("failed", "The prompt — häßlich — broke it.")
    assert (entry.has_image, entry.image_url, entry.provided_secret) == (False, None, None)


async def test_a_job_that_timed_out_is_delivered_as_failed(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    desk.clock.advance(desk.config.queue_timeout_s + 1)
    await desk.until_settled()

    (entry,) = receiver.entries()
    assert entry.status == "failed"


async def test_the_body_is_multipart_form_data_byte_by_byte(desk: Desk) -> None:
    async with raw_receiver() as receiver:
        await completed(desk, f"{receiver.url}?token=a%2Fb", secret="s3cret")
        await desk.until_settled()

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

    assert (await desk.settled_delivery()).state is DeliveryState.DELIVERED


# ---- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_a_delivery(desk: Desk, receiver: CallbackServer, status: int) -> None:
    receiver.misbehave(answer_status=status)
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.DELIVERED, status, True)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 429, 500, 503])
async def test_any_other_answer_is_a_failure_that_is_tried_again(
    desk: Desk, receiver: CallbackServer, status: int
) -> None:
    headers = {"Location": f"{receiver.url}/elsewhere"}
    receiver.misbehave(times=1, answer_status=status, answer_body="not now", answer_headers=headers)
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.FAILED, status, False)
    assert (delivery.response_preview, delivery.error) == ("not now", None)
    assert delivery.next_attempt_at is not None
    assert len(receiver.entries()) == 1, "redirects are not followed"


async def test_a_receiver_that_is_gone_is_not_tried_again(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=410)
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.FAILED, 410, True)


async def test_no_answer_is_a_failure_without_a_status(desk: Desk, receiver: CallbackServer) -> None:
    receiver.misbehave(drop_connection=True)
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
    assert "did not answer" in str(delivery.error)


async def test_nobody_listening_is_a_failure_without_a_status(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    await completed(desk, f"http://127.0.0.1:{port}/callback")

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, None)
    assert "could not be reached" in str(delivery.error)


async def test_a_receiver_slower_than_the_timeout_is_a_failure(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(delay_s=BOUND_S)
    desk = await start(callback_timeout_s=2.0)
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
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
        delivery = await desk.settled_delivery()
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
        delivery = await desk.settled_delivery()
    assert delivery.response_preview == "first later"


async def test_a_status_counts_though_its_body_never_ends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.sender.PREVIEW_TIMEOUT_S", 0.1)
    over = asyncio.Event()
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    async with raw_receiver(answering_and_waiting(half, over)) as receiver:
        await completed(desk, receiver.url)
        delivery = await desk.settled_delivery()
        over.set()

    assert delivery is not None
    assert (delivery.state, delivery.response_preview) == (DeliveryState.DELIVERED, "half")


async def test_an_answer_that_comes_before_the_whole_picture_was_read_counts(desk: Desk) -> None:
    over = asyncio.Event()
    too_large = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"
    respond = answering_and_waiting(too_large, over)
    async with raw_receiver(respond, respond_to_head=True) as receiver:
        await completed(desk, receiver.url, content=PNG + bytes(20_000_000))
        delivery = await desk.settled_delivery()
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
        delivery = await desk.settled_delivery()
    assert delivery.state in {DeliveryState.DELIVERED, DeliveryState.FAILED}
    assert "\x00" not in str(delivery.response_preview)


async def test_a_secret_that_cannot_be_a_header_is_an_error_and_is_not_sent(
    desk: Desk, receiver: CallbackServer
) -> None:
    await completed(desk, receiver.callback_url, secret="two\r\nlines: injected")

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code) == (DeliveryState.ERROR, None)
    assert receiver.entries() == ()


async def test_a_missing_picture_is_an_error_and_nothing_is_sent(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    claim = await desk.claim_one()
    report = desk.completion(claim)
    desk.pictures.delete(claim.artifact_key)
    await desk.do(report)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code, delivery.final) == (DeliveryState.ERROR, None, False)
    assert "picture cannot be read" in str(delivery.error)
    assert receiver.entries() == ()


async def test_an_altered_picture_is_an_error_and_nothing_is_sent(desk: Desk, receiver: CallbackServer) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    claim = await desk.claim_one()
    report = desk.completion(claim)
    desk.pictures.publish(claim.artifact_key, b"altered")
    await desk.do(report)

    delivery = await desk.settled_delivery()
    assert delivery.state is DeliveryState.ERROR
    assert receiver.entries() == ()


async def test_a_picture_store_that_hangs_is_an_error_within_the_timeout(
    start: StartDesk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    desk = await start(callback_timeout_s=1.0)
    monkeypatch.setattr(desk.pictures, "read", lambda _: over.wait(BOUND_S))
    try:
        await completed(desk, receiver.callback_url)
        delivery = await desk.settled_delivery()
    finally:
        over.set()

    assert delivery is not None
    assert delivery.state is DeliveryState.ERROR
    assert "did not answer in time" in str(delivery.error)


async def test_an_address_that_the_policy_refuses_is_an_error(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(callback_allow_loopback=False)
    await completed(desk, receiver.callback_url)

    delivery = await desk.settled_delivery()
    assert (delivery.state, delivery.status_code) == (DeliveryState.ERROR, None)
    assert "does not send to" in str(delivery.error)
    assert receiver.entries() == ()


async def test_a_first_attempt_after_a_commit_that_stood_still_is_made_once(
    desk: Desk, receiver: CallbackServer
) -> None:
    await desk.submit("job-1", callback_url=receiver.callback_url)
    claim = await desk.claim_one()
    going_on = threading.Event()
    still = asyncio.create_task(desk.tracker._run(lambda _: going_on.wait(BOUND_S)))
    completing = asyncio.create_task(desk.complete(claim, PICTURE))
    await asyncio.sleep(0.2)  # The end waits for the commit; the courier looks for lost attempts behind it, and later.
    desk.clock.advance(3600)
    going_on.set()

    assert await completing is True
    delivery = await desk.settled_delivery()
    await look_for_repeats(desk)

    assert delivery is not None
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 1)
    assert len(receiver.entries()) == 1
    await still
