"""When a callback is tried again."""

import random
from collections.abc import Callable

FIRST_DELAY_S = 2.0
GROWTH = 2.0
LONGEST_DELAY_S = 3600.0
SPREAD = 0.2
"""Fraction by which a delay is varied, so that a receiver that comes back does not meet every delivery at once."""
LAST_TRY_MARGIN_S = 5.0
"""The last attempt begins this long before the give-up time, so that it can be answered before it."""


def next_attempt_at(
    attempt: int,
    now: float,
    give_up_at: float,
    *,
    retry_after_s: float | None = None,
    vary: Callable[[float, float], float] = random.uniform,
) -> float | None:
    """Return when to try again after attempt number `attempt` (from 1) failed; None when it was the last.

    Delays double from 2 s to an hour; a receiver's Retry-After is honoured, up to an hour. What would come too late is
    moved to just before `give_up_at` once, so that a short expiry still gets a last try.
    """
    delay = min(FIRST_DELAY_S * GROWTH ** min(attempt - 1, 32), LONGEST_DELAY_S)
    delay *= vary(1 - SPREAD, 1 + SPREAD)
    if retry_after_s is not None:
        delay = max(delay, min(retry_after_s, LONGEST_DELAY_S))
    last = give_up_at - LAST_TRY_MARGIN_S
    if now + delay <= last:
        return now + delay
    return last if last - now >= FIRST_DELAY_S else None
