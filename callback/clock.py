"""The one place where this room reads the time, so that tests can move it."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time, in seconds since the Unix epoch (UTC)."""

    def now(self) -> float:
        """Return the present moment."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the present moment."""
        return time.time()


def iso(moment: float) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds and `+00:00`, the format of the wire protocol."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds")
