"""The load generator's connections: each answer is its own call's, whatever the server does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bench import connections
from bench.connections import Session

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """A TCP server that counts its connections."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[Server]:
    server = Server(talk)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield server


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(": ")[1]) for line in head.split("\r\n") if line.startswith("Content-Length")), 0)
        body = await reader.readexactly(length)
        told = head.encode() + body
        writer.write(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (told[:7], told[7:]):
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        writer.write(b"0\r\n\r\n")


async def test_a_connection_is_used_again_and_every_call_gets_its_own_answer() -> None:
    async with serving(answer_all) as server, Session({"X-Key": "k"}) as session:
        for n in range(3):
            answer = await session.call("POST", f"{server.url}/a/b?n={n}", f'{{"n": {n}}}'.encode())
            assert answer.status == 201
            told = answer.body.decode()
            assert told.startswith(f"POST /a/b?n={n} HTTP/1.1\r\nHost: 127.0.0.1:")
            assert "X-Key: k\r\n" in told
            assert told.endswith(f'\r\n\r\n{{"n": {n}}}')
        assert server.connections == 1
        answers = await asyncio.gather(*(session.call("GET", f"{server.url}/{n}") for n in range(4)))
        assert [answer.body.split()[1] for answer in answers] == [f"/{n}".encode() for n in range(4)]
        assert server.connections == 4


async def test_each_call_is_signed_for_its_body() -> None:
    async with serving(answer_all) as server, Session(sign=lambda body: {"X-Length": str(len(body))}) as session:
        for body in (b"{}", None, b'{"a": 1}'):
            told = (await session.call("POST", server.url, body)).body
            assert f"X-Length: {len(body or b'')}\r\n".encode() in told


async def test_a_connection_that_rested_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FRESH_S", 3600)
    async with serving(answer_all) as server, Session() as session:
        for _ in range(3):
            await session.call("GET", server.url)
        assert server.connections == 1
        monkeypatch.setattr(connections, "FRESH_S", 0.0)
        await session.call("GET", server.url)
        assert server.connections == 2


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nnot all",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ],
)
async def test_what_is_no_whole_answer_is_an_error(told: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(told)

    async with serving(talk) as server, Session() as session:
        with pytest.raises(OSError):  # noqa: PT011 - its text is the system's
            await asyncio.wait_for(session.call("GET", server.url), 5)


async def test_a_server_that_wants_to_close_gets_a_new_connection_for_the_next_call() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))

    async with serving(once) as server, Session() as session:
        for n in range(3):
            assert (await session.call("GET", server.url)).body == b"ok"
            assert server.connections == n + 1


async def test_an_interrupted_call_leaves_nothing_for_the_next_one() -> None:
    asked = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.set()
        if b"/slow" in head:
            await asyncio.sleep(0.2)
        writer.write(OK.replace(b"ok", b"no") if b"/slow" in head else OK)

    async with serving(late) as server, Session() as session:
        slow = asyncio.create_task(session.call("GET", f"{server.url}/slow"))
        await asked.wait()
        slow.cancel()
        assert (await session.call("GET", f"{server.url}/quick")).body == b"ok"
