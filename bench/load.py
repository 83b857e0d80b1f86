"""The load generator: many HTTP calls by a fixed number of callers, each timed as its caller sees it.

aiohttp and nothing around it: parsing answers, or building typed requests, would cost the cores that the measured
service shares. All moments are seconds of this machine's clock, which the service's own timestamps are from, too.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.errors import BenchError
from bench.records import Calls
from bench.statistics import percentile

CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request. `body` is JSON, already encoded."""

    method: str
    url: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with status 200, and when its call began and ended."""

    began: float
    ended: float
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body's JSON object."""
        answer: dict[str, Any] = json.loads(self.body)
        return answer


@dataclass(frozen=True, slots=True)
class Burst:
    """The replies to calls that were made at once, in the order of the calls."""

    replies: tuple[Reply, ...]

    @property
    def began(self) -> float:
        """When the first call was made."""
        return min(reply.began for reply in self.replies)

    @property
    def ended(self) -> float:
        """When the last answer was there."""
        return max(reply.ended for reply in self.replies)

    def calls(self) -> Calls:
        """Return rate and latencies."""
        latencies = [1000 * (reply.ended - reply.began) for reply in self.replies]
        return Calls(
            count=len(latencies),
            per_s=len(latencies) / (self.ended - self.began),
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
        )


@asynccontextmanager
async def load_generator(
    headers: Mapping[str, str] | None = None, sign: Callable[[bytes], Mapping[str, str]] | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session that keeps as many connections as calls are made at once.

    `headers` go with every call, and those that `sign` returns for its body.
    """
    async with aiohttp.ClientSession(
        headers=headers,
        middlewares=(_signing(sign),) if sign else (),
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
        auto_decompress=False,
    ) as session:
        yield session


def _signing(sign: Callable[[bytes], Mapping[str, str]]) -> aiohttp.ClientMiddlewareType:
    async def signed(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        body = request.body if isinstance(request.body, bytes) else await request.body.as_bytes()
        request.headers.update(sign(body))
        return await handler(request)

    return signed


async def one(session: aiohttp.ClientSession, call: Call) -> Reply:
    """Make a call. Raises `BenchError` for any answer but 200, and for none within a minute."""
    headers = {"Content-Type": "application/json"} if call.body is not None else None
    began = time.time()
    try:
        async with session.request(call.method, call.url, data=call.body, headers=headers) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchError(f"{call.method} {call.url}: no answer ({type(error).__name__}: {error}).") from error
    ended = time.time()
    if answer.status != 200:
        raise BenchError(f"{call.method} {call.url}: {answer.status} {body[:300].decode(errors='replace')}")
    return Reply(began, ended, body)


async def burst(session: aiohttp.ClientSession, calls: Sequence[Call], at_once: int) -> Burst:
    """Make all calls, `at_once` at any time. Raises `BenchError` if one fails: the rate would mean nothing."""
    replies: list[Reply | None] = [None] * len(calls)
    left = iter(enumerate(calls))

    async def caller() -> None:
        for n, call in left:
            replies[n] = await one(session, call)

    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(at_once):
                callers.create_task(caller())
    except* BenchError as failed:
        raise failed.exceptions[0] from None
    return Burst(tuple(reply for reply in replies if reply is not None))
