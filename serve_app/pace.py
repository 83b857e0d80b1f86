"""How many jobs a dispatcher claims ahead of the devices, by how fast they end."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 1.0
"""Ends are counted over this long."""
ROUND_TRIPS = 6.0
"""From its claim to its report a job of milliseconds takes about six times as long as a claim alone: it is sent through
Ray, stored, and waits for its batch. Measured: with two the devices of a busy service idle (docs/performance.md)."""
MOST_COUNTED = 10_000
_WEIGHT = 0.2


class Pace:
    """Counts ends and measures claims. `ahead`: how many jobs end while one passes (Little's law).

    Pictures that take seconds give none; without it, models that take milliseconds would wait for each claim.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=MOST_COUNTED)
        self._claim_s = 0.0

    def ended(self) -> None:
        """Note that a job has ended."""
        self._ends.append(self._clock())

    def claimed(self, seconds: float) -> None:
        """Note how long a claim took; later ones count more."""
        self._claim_s += (seconds - self._claim_s) * (_WEIGHT if self._claim_s else 1.0)

    @property
    def ahead(self) -> int:
        """How many jobs end while one passes, rounded down."""
        oldest = self._clock() - WINDOW_S
        while self._ends and self._ends[0] < oldest:
            self._ends.popleft()
        return int(len(self._ends) / WINDOW_S * ROUND_TRIPS * self._claim_s)
