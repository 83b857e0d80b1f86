"""The one place where this room reads the time, so that tests can move it."""

import time
from datetime import UTC, datetime
from typing import Protocol

# A client's expiry in the last microseconds of the year 9999 is, as a float, in the year 10000, which nothing can show.
_LATEST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


class Clock(Protocol):
    """Wall time for moments that others see or the store keeps, steady time for how long something took. Seconds."""

    def now(self) -> float:
        """Return the present moment since the Unix epoch (UTC). It jumps when the machine's clock is set."""
        ...

    def steady(self) -> float:
        """Return a moment that only differences are taken of; nobody can set it."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the present moment, in seconds since the Unix epoch (UTC)."""
        return time.time()

    def steady(self) -> float:
        """Return a moment that only differences are taken of."""
        return time.monotonic()


def iso(moment: float) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds and `+00:00`, the format of the wire protocol."""
    return datetime.fromtimestamp(min(moment, _LATEST), UTC).isoformat(timespec="microseconds")
