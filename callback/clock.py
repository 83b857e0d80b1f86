"""The one place where this room reads the time, so that tests can move it."""

import time
from datetime import UTC, datetime
from typing import Protocol

# A client's expiry in the last microseconds of the year 9999 is, as a float, in the year 10000, which nothing can show.
_LATEST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


LEAP_S = 300.0
"""More than a time server corrects day by day."""
BELIEVED_AFTER_S = 3600.0
"""Long enough for whoever set the clock by mistake to set it right; a machine that was asleep loses no more by it."""


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


class LeapWatch:
    """Notices a wall clock that was set ahead, by a mistake perhaps: for those who would destroy what it makes old."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._usual_s = self._leap_s = self._ahead_s()
        self._leapt_at = 0.0

    def _ahead_s(self) -> float:
        return self._clock.now() - self._clock.steady()

    def has_leapt(self) -> bool:
        """Tell whether the clock was set ahead by more than `LEAP_S`, and has been so for less than `BELIEVED_AFTER_S`.

        Measured from call to call. A clock that is set back is believed at once.
        """
        ahead_s, steady = self._ahead_s(), self._clock.steady()
        if ahead_s - self._usual_s <= LEAP_S:
            self._usual_s = self._leap_s = ahead_s
            return False
        if abs(ahead_s - self._leap_s) > LEAP_S:
            self._leap_s, self._leapt_at = ahead_s, steady
        if steady - self._leapt_at < BELIEVED_AFTER_S:
            return True
        self._usual_s = ahead_s
        return False


def iso(moment: float) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds and `+00:00`, the format of the wire protocol."""
    return datetime.fromtimestamp(min(moment, _LATEST), UTC).isoformat(timespec="microseconds")
