"""Requests on connections that others had before: whether a body was sent whole, whether an answer is one to it."""

import asyncio

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection

CHUNK_BYTES = 1 << 16


class UnusableConnection(aiohttp.ClientConnectionError):
    """The connection was closed, or held an answer, when the request was to be sent."""


class Upload(aiohttp.Payload):
    """A request's body, for aiohttp's `data`."""

    _autoclose = True  # It holds nothing open.

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._size = len(body)
        self._transport: asyncio.WriteTransport | None = None
        self.is_whole = False
        """Whether the system has taken all of it, once the response is closed. With TLS some may be in a buffer of the
        transport below, which tells nobody how much it holds."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body, and wait until it has left this process. An answer that comes earlier ends the writing."""
        self._transport = transport = writer.transport
        left = memoryview(self._value)
        try:
            while left:
                chunk, left = left[:CHUNK_BYTES], left[CHUNK_BYTES:]
                await writer.write(chunk)
            if transport is not None and transport.get_write_buffer_size():
                transport.set_write_buffer_limits(0)
                await writer.drain()
                if not transport.is_closing():
                    transport.set_write_buffer_limits()
        finally:
            # Not whether the end was reached: the answer to the whole may come to be known before that all has left.
            self.is_whole = not left and transport is not None and _has_sent_all(transport)

    def drop_the_rest(self) -> None:
        """Give up what has not left yet, and the connection with it.

        A connection that is merely closed waits for a receiver that reads no more, for ever.
        """
        if not self.is_whole and self._transport is not None:
            self._transport.abort()


def _has_sent_all(transport: asyncio.WriteTransport) -> bool:
    # One that is lost has nothing left to send either.
    return not transport.is_closing() and transport.get_write_buffer_size() == 0


class Request(aiohttp.ClientRequest):
    """A request whose answer is one to itself, for aiohttp's `request_class`."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send the request. Raises `UnusableConnection`, before that, if the connection holds an answer or is closed.

        An answer that is there before the request is one to an earlier request, which had one, or to nothing.
        """
        if conn.protocol is None or conn.protocol.should_close:
            raise UnusableConnection
        return await super().send(conn)
