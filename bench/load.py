"""The load generator: many HTTP calls by a fixed number of callers, each timed as its caller sees it.

All moments are seconds of this machine's clock, which the service's own timestamps are from, too.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.connections import Session
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


async def one(session: Session, call: Call) -> Reply:
    """Make a call. Raises `BenchError` for any answer but 200, and for none within a minute."""
    began = time.time()
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            status, body = await session.call(call.method, call.url, call.body)
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{call.method} {call.url}: no answer ({type(error).__name__}: {error}).") from error
    ended = time.time()
    if status != 200:
        raise BenchError(f"{call.method} {call.url}: {status} {body[:300].decode(errors='replace')}")
    return Reply(began, ended, body)


async def burst(session: Session, calls: Sequence[Call], at_once: int) -> Burst:
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
    except ExceptionGroup as failed:  # Not `except*`: before Python 3.11.4 what it raises is a group again.
        # A bug of our own says more than a call that failed beside it.
        bugs = [one for one in failed.exceptions if not isinstance(one, BenchError)]
        raise [*bugs, *failed.exceptions][0] from None
    return Burst(tuple(reply for reply in replies if reply is not None))
