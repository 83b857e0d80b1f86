"""HTTP connections of the load generator.

httptools parses; nothing else is done, for the measured service would pay for it with the cores that both share.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple, Self, cast
from urllib.parse import urlsplit

import httptools

FRESH_S = 1.0
"""A connection that nobody used for longer may be closed by the server just when it is used."""

Sign = Callable[[bytes], Mapping[str, str]]


class Answer(NamedTuple):
    """A server's answer."""

    status: int
    body: bytes


class _Place(NamedTuple):
    host: str
    port: int
    target: str


@lru_cache(maxsize=65_536)
def _place(url: str) -> _Place:
    parts = urlsplit(url)
    target = parts.path or "/"
    return _Place(parts.hostname or "", parts.port or 80, f"{target}?{parts.query}" if parts.query else target)


class Session:
    """Makes calls, each on a connection of its own, which the next one uses again.

    `headers` go with every call, and those that `sign` returns for its body. Use it with `async with`.
    """

    def __init__(self, headers: Mapping[str, str] | None = None, sign: Sign | None = None) -> None:
        self._headers = dict(headers or {})
        self._sign = sign
        self._free: defaultdict[tuple[str, int], list[_Connection]] = defaultdict(list)
        self._connections: set[_Connection] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in tuple(self._connections):
            connection.close()

    async def call(self, method: str, url: str, body: bytes | None = None) -> Answer:
        """Make a call; `body` is JSON, already encoded. Raises OSError if no whole answer comes."""
        host, port, target = _place(url)
        headers = {"Host": f"{host}:{port}", **self._headers}
        if body is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        if self._sign is not None:
            headers |= self._sign(body or b"")
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection = await self._connection(host, port)
        try:
            answer = await connection.ask(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))
        except BaseException:
            # What is left of the answer would be taken for the next one's.
            connection.close()
            raise
        if connection.usable:
            self._free[host, port].append(connection)
        return answer

    async def _connection(self, host: str, port: int) -> "_Connection":
        free = self._free[host, port]
        while free:
            if (connection := free.pop()).usable:
                return connection
            connection.close()
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
        self._connections.add(connection)
        connection.on_close = self._connections.discard
        return connection


class _Connection(asyncio.Protocol):
    """One connection, and one answer at a time. The methods that begin with `on_` are the parser's calls."""

    def __init__(self) -> None:
        self.on_close: Callable[[_Connection], None] = lambda _: None
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._body: list[bytes] = []
        self._used_at = time.monotonic()
        self._kept = True

    @property
    def usable(self) -> bool:
        """Whether another call may be made."""
        return self._kept and time.monotonic() - self._used_at < FRESH_S

    async def ask(self, request: bytes) -> Answer:
        """Send a whole request and return its answer. Raises OSError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Use it no more."""
        self._kept = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionAbortedError(f"the answer is no HTTP: {error}"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._kept = False
        self._fail(error or ConnectionResetError("the server closed the connection"))
        self.on_close(self)

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Hand over the answer."""
        body, self._body = b"".join(self._body), []
        self._used_at = time.monotonic()
        self._kept = self._kept and bool(self._parser.should_keep_alive())
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(int(self._parser.get_status_code()), body))
