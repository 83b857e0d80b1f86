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
    """Notices a wall clock that was set ahead, by a mistake perhaps: for those who would destroy what it makes old.

    `last_known` is a moment that the clock showed before this process began. Whether a later one means that nobody was
    there, or a clock that is wrong since, cannot be told: it counts as a leap, and `is_seen` is False then.
    """

    def __init__(self, clock: Clock, last_known: float | None = None) -> None:
        self._clock = clock
        self._leap_s = self._ahead_s()
        self._leapt_at = clock.steady()
        away_s = 0.0 if last_known is None else max(0.0, clock.now() - last_known)
        self._usual_s = self._leap_s - away_s
        self.is_seen = False

    def _ahead_s(self) -> float:
        return self._clock.now() - self._clock.steady()

    def has_leapt(self) -> bool:
        """Tell whether the clock was set ahead by more than `LEAP_S`, and has been so for less than `BELIEVED_AFTER_S`.

        Measured from call to call. A clock that is set back is believed at once.
        """
        ahead_s, steady = self._ahead_s(), self._clock.steady()
        if ahead_s - self._usual_s > LEAP_S:
            if abs(ahead_s - self._leap_s) > LEAP_S:
                self._leap_s, self._leapt_at, self.is_seen = ahead_s, steady, True
            if steady - self._leapt_at < BELIEVED_AFTER_S:
                return True
        self._usual_s = self._leap_s = ahead_s
        self.is_seen = False
        return False


def iso(moment: float) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds and `+00:00`, the format of the wire protocol."""
    return datetime.fromtimestamp(min(moment, _LATEST), UTC).isoformat(timespec="microseconds")
