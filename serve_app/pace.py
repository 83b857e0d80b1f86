"""How many jobs a dispatcher claims ahead of the devices, by how fast they end."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 1.0
"""Ends are counted over this long."""
QUICK_PER_S = 2.0
"""Ends a second and device from which on jobs are quick: below it a device that waits for a claim loses little."""
LONGEST_CLAIM_S = 0.25
"""A claim that took longer met a tracker that was restarting, or a store that stood still: the next one will not."""
ROUND_TRIPS = 12.0
"""From its claim to its report a job of milliseconds takes about twelve times as long as a claim alone: it is sent
through Ray together with others, stored, and waits for their ends and for its batch (docs/performance.md)."""
TOGETHER_S = 0.05
"""So long may a job wait for others that are sent in the same call."""
MOST_TOGETHER = 16
"""Jobs in one call: a quarter of what a replica takes, so that it has the next ones when it tells of these."""
MOST_COUNTED = 10_000
_WEIGHT = 0.2


class Pace:
    """Counts ends and measures claims. `ahead`: how many jobs end while one passes (Little's law).

    Pictures that take a second give none; without it, models that take milliseconds would wait for each claim.
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
        seconds = min(seconds, LONGEST_CLAIM_S)
        self._claim_s += (seconds - self._claim_s) * (_WEIGHT if self._claim_s else 1.0)

    def ahead(self, devices: int) -> int:
        """How many jobs end on so many devices while one passes, rounded down; 0 if they are not quick."""
        per_s = self._per_s()
        return int(per_s * ROUND_TRIPS * self._claim_s) if per_s >= QUICK_PER_S * devices else 0

    def together(self, devices: int) -> int:
        """How many jobs one of so many devices ends in `TOGETHER_S`, 1...`MOST_TOGETHER`."""
        return max(1, min(int(self._per_s() / devices * TOGETHER_S), MOST_TOGETHER))

    def _per_s(self) -> float:
        oldest = self._clock() - WINDOW_S
        while self._ends and self._ends[0] < oldest:
            self._ends.popleft()
        return len(self._ends) / WINDOW_S
