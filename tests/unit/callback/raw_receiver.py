"""A receiver that shows the very bytes it was sent and answers with the very bytes it was told."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Request:
    head: str
    body: bytes

    @property
    def line(self) -> str:
        return self.head.partition("\r\n")[0]

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None


@dataclass
class RawReceiver:
    """`respond` is called when a request has come whole; with `respond_to_head`, already after its headers.

    The connection is closed after the answer, unless `keep_alive`.
    """

    port: int
    respond: Respond
    respond_to_head: bool = False
    keep_alive: bool = False
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/callback"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.peers.append(writer.get_extra_info("sockname")[0])
        try:
            await self._answer(reader, writer)
            while self.keep_alive:
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request = Request(head, b"")
        if not self.respond_to_head:
            request.body = await _body(reader, request)
        self.requests.append(request)
        await self.respond(reader, writer)


async def _body(reader: asyncio.StreamReader, request: Request) -> bytes:
    if (length := request.header("Content-Length")) is not None:
        return await reader.readexactly(int(length))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    return body


def answering(answer: bytes = ANSWER) -> Respond:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return respond


def answering_and_waiting(answer: bytes, until: asyncio.Event) -> Respond:
    """Answer, and keep the connection open until the event."""

    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        await until.wait()

    return respond


@asynccontextmanager
async def raw_receiver(
    respond: Respond | None = None,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    respond_to_head: bool = False,
    keep_alive: bool = False,
) -> AsyncIterator[RawReceiver]:
    receiver = RawReceiver(0, respond or answering(), respond_to_head, keep_alive)
    server = await asyncio.start_server(receiver._serve, host, 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()
