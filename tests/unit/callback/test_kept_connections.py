"""Callbacks over connections that others had before, to receivers that answer too early, twice, or do not read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import uvloop
from yarl import URL

from callback.egress import Target
from callback.sender import Message, NoReply, Sender
from tests.unit.callback.raw_receiver import ANSWER, RawReceiver, answering_and_waiting, raw_receiver

MESSAGE = Message({"Content-Type": "text/plain"}, b"It broke.", sent_at=1_900_000_000.0)
LARGE = Message({}, bytes(20_000_000), MESSAGE.sent_at)
"""More than the system takes for a receiver that does not read."""


async def send(sender: Sender, target: Target, times: int = 1) -> None:
    for _ in range(times):
        assert (await sender.post(MESSAGE, target, timeout_s=10)).accepted


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep connections for longer than a busy machine may take between two callbacks."""
    monkeypatch.setattr("callback.sender.KEEP_ALIVE_S", 60.0)


@pytest.mark.usefixtures("patient")
async def test_callbacks_that_follow_each_other_share_a_connection() -> None:
    async with raw_receiver(keep_alive=True) as receiver, Sender() as sender:
        await send(sender, Target(URL(receiver.url), ("127.0.0.1",)), times=3)

    assert (receiver.connections, len(receiver.requests)) == (1, 3)


@pytest.mark.usefixtures("patient")
async def test_callbacks_for_different_names_share_no_connection() -> None:
    async with raw_receiver(keep_alive=True) as receiver, Sender() as sender:
        for host in ("one.example", "two.example", "one.example"):
            await send(sender, Target(URL(f"http://{host}:{receiver.port}/callback"), ("127.0.0.1",)))

    assert receiver.connections == 2
    assert [request.header("Host") for request in receiver.requests] == [
        f"{host}.example:{receiver.port}" for host in ("one", "two", "one")
    ]


@pytest.mark.usefixtures("patient")
async def test_an_address_that_was_not_checked_this_time_is_not_used_again() -> None:
    async with raw_receiver(host="0.0.0.0", keep_alive=True) as receiver, Sender() as sender:  # noqa: S104 - all of loopback
        for address in ("127.0.0.1", "127.0.0.2"):
            await send(sender, Target(URL(f"http://moving.example:{receiver.port}/callback"), (address,)))

    assert receiver.peers == ["127.0.0.1", "127.0.0.2"]


async def test_a_connection_is_not_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.sender.KEEP_ALIVE_S", 0.05)
    async with raw_receiver(keep_alive=True) as receiver, Sender() as sender:
        target = Target(URL(receiver.url), ("127.0.0.1",))
        await send(sender, target)
        await asyncio.sleep(0.2)
        await send(sender, target)

    assert receiver.connections == 2


@pytest.mark.usefixtures("patient")
async def test_a_kept_connection_that_the_receiver_closes_costs_one_attempt() -> None:
    answers = [ANSWER, None, ANSWER]

    async def answer_once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer := answers.pop(0):
            writer.write(answer)
        else:
            writer.close()

    async with raw_receiver(answer_once, keep_alive=True) as receiver, Sender() as sender:
        target = Target(URL(receiver.url), ("127.0.0.1",))
        await send(sender, target)
        with pytest.raises(NoReply, match="did not answer"):
            await send(sender, target)
        await send(sender, target)

    assert (receiver.connections, len(receiver.requests)) == (2, 3), "nothing is sent twice"


@asynccontextmanager
async def answering_unread(answer: bytes) -> AsyncIterator[RawReceiver]:
    """Answer when the headers have come, read no more, and keep the connection open."""
    over = asyncio.Event()
    async with raw_receiver(answering_and_waiting(answer, over), respond_to_head=True) as receiver:
        try:
            yield receiver
        finally:
            over.set()


@pytest.mark.usefixtures("patient")
async def test_a_connection_on_which_a_callback_was_not_sent_whole_is_not_used_again() -> None:
    """What follows on it would be taken for the rest."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
    async with answering_unread(refusal) as receiver, Sender() as sender:
        target = Target(URL(receiver.url), ("127.0.0.1",))
        assert (await sender.post(LARGE, target, timeout_s=10)).status_code == 413
        assert (await sender.post(MESSAGE, target, timeout_s=10)).status_code == 413

    assert receiver.connections == 2


async def test_a_success_that_is_told_before_the_callback_was_sent_whole_is_none() -> None:
    async with answering_unread(ANSWER) as receiver, Sender() as sender:
        with pytest.raises(NoReply, match="answered 200 before the whole callback had been sent"):
            await sender.post(LARGE, Target(URL(receiver.url), ("127.0.0.1",)), timeout_s=10)


@pytest.mark.parametrize("answer", [ANSWER, b""])
async def test_nothing_is_kept_for_a_receiver_that_does_not_read(answer: bytes) -> None:
    async with answering_unread(answer) as receiver:
        async with asyncio.timeout(5), Sender() as sender:
            with pytest.raises(NoReply):
                await sender.post(LARGE, Target(URL(receiver.url), ("127.0.0.1",)), timeout_s=0.5)
        async with asyncio.timeout(5):
            while sockets_to(receiver.port):  # noqa: ASYNC110 - the system tells nobody
                await asyncio.sleep(0.01)


def sockets_to(port: int) -> list[object]:
    return [one for one in psutil.Process().net_connections() if one.raddr and one.raddr.port == port]


@asynccontextmanager
async def greeting() -> AsyncIterator[Target]:
    """Answer whoever connects, before any request, and read nothing."""

    over = asyncio.Event()

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        await over.wait()
        writer.transport.abort()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        try:
            yield Target(URL(f"http://127.0.0.1:{port}/callback"), ("127.0.0.1",))
        finally:
            over.set()


async def test_a_success_that_is_told_to_whoever_connects_is_none() -> None:
    async with greeting() as target, Sender() as sender:
        with pytest.raises(NoReply, match=r"before the (request|whole callback)"):
            await sender.post(LARGE, target, timeout_s=10)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_was_sent_whole_is_known_in_both_event_loops(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Ray's actors use uvloop, these tests asyncio's own."""

    async def post_both() -> None:
        async with raw_receiver(keep_alive=True) as reading, Sender() as sender:
            assert (await sender.post(LARGE, Target(URL(reading.url), ("127.0.0.1",)), timeout_s=30)).accepted
            assert len(reading.requests[0].body) == len(LARGE.body)
            async with answering_unread(ANSWER) as deaf:
                with pytest.raises(NoReply, match="before the whole callback had been sent"):
                    await sender.post(LARGE, Target(URL(deaf.url), ("127.0.0.1",)), timeout_s=10)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(post_both(), 60))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((ANSWER, ANSWER), id="later"),
        pytest.param((ANSWER[:-1], ANSWER[-1:] + ANSWER), id="with the end of the first"),
        pytest.param((ANSWER + ANSWER,), id="at once"),
    ],
)
async def test_a_second_answer_is_not_taken_for_one_to_the_next_callback(pieces: tuple[bytes, ...]) -> None:
    async def answer_twice(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with raw_receiver(answer_twice, keep_alive=True) as receiver, Sender() as sender:
        target = Target(URL(receiver.url), ("127.0.0.1",))
        believed = 0
        for _ in range(4):
            with suppress(NoReply):
                believed += (await sender.post(MESSAGE, target, timeout_s=10)).accepted
            await asyncio.sleep(0.2)

    assert believed == len(receiver.requests)
    assert believed >= 2
