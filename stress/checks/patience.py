"""Waiting for a service that says that it is busy: the protocol lets it answer any call with 429 or 503."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stress.errors import ServiceBusyError

T = TypeVar("T")

FIRST_PAUSE_S = 0.5
FIRST_PAUSE_WHERE_ASKED_S = 0.05
"""Where the service says how long to wait, which may be nothing at all."""
LONGEST_PAUSE_S = 5.0
"""Of the kit's own pauses, which double; one that the service asks for may be longer."""


async def patiently(call: Callable[[], Awaitable[T]], budget_s: float) -> T:
    """Make the call, and again after a pause while the service is busy.

    Raises:
        ServiceBusyError: it was still busy after `budget_s`, or asks for a longer wait than is left.
    """
    deadline = time.monotonic() + budget_s
    times = 0
    while True:
        try:
            return await call()
        except ServiceBusyError as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or (error.retry_after_s or 0.0) > left_s:
                raise
            asked_s = error.retry_after_s
        first_s = FIRST_PAUSE_S if asked_s is None else FIRST_PAUSE_WHERE_ASKED_S
        pause_s = max(min(first_s * 2**times, LONGEST_PAUSE_S), asked_s or 0.0)
        await asyncio.sleep(min(pause_s, left_s))
        times += 1
