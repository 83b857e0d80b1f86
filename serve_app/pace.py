"""How many jobs a dispatcher claims ahead of the devices, by how long jobs take there."""

import time
from collections.abc import Callable

QUICK_S = 0.5
"""Jobs that take no longer are quick: with slower ones a device that waits for a claim loses little."""
SHORTEST_JOB_S = 0.001
"""What takes less is held up by other things than its device."""
SLOW_S = 2 * QUICK_S
"""As so long count all slower ones: four quick ends in a row outweigh one of them."""
AHEAD_AN_END = 2
"""Jobs ahead for each quick end without a slow one between: a first preview before pictures of a minute brings two of
them early, and a burst is at full speed after four or five times."""
REMEMBERED_S = 2.0
"""After so long without an end the next jobs may be of another kind: quick ends are counted anew."""
LONGEST_CLAIM_S = 0.25
"""A claim that took longer met a tracker that was restarting, or a store that stood still: the next one will not."""
ROUND_TRIPS = 12.0
"""From its claim to its report a job of milliseconds takes about twelve times as long as a claim alone: it is sent
through Ray together with others, stored, and waits for their ends and for its batch (docs/performance.md)."""
TOGETHER_S = 0.05
"""So long may a job wait for others that are sent in the same call."""
MOST_TOGETHER = 16
"""Jobs in one call: a quarter of what a replica takes, so that it has the next ones when it tells of these."""
_WEIGHT = 0.2


class Pace:
    """Measures jobs and claims. `ahead`: how many jobs the devices can end while one passes (Little's law).

    Pictures that take a second give none; without it, models that take milliseconds would wait for each claim. Counted
    is what the devices can do, and not what has ended lately: of a burst that has just begun that is too little.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._job_s = 0.0
        self._quick_ends = 0
        self._ended_at = clock()
        self._claim_s = 0.0

    def ended(self, seconds: float) -> None:
        """Note that a job has ended, and how long it took from its start to its stored picture.

        Later ones count more, and a slow one outweighs all before it: claiming too many of its kind costs more than
        claiming too few quick ones. Where the store is slower than the device the wait for it is in the seconds, and
        jobs look up to four times as slow as they follow each other.
        """
        seconds = max(seconds, SHORTEST_JOB_S)
        if seconds > QUICK_S:
            self._job_s, self._quick_ends = min(seconds, SLOW_S), 0
        else:
            self._job_s += (seconds - self._job_s) * (_WEIGHT if self._job_s else 1.0)
            self._quick_ends = self._quick_in_a_row + 1
        self._ended_at = self._clock()

    def claimed(self, seconds: float) -> None:
        """Note how long a claim took; later ones count more."""
        seconds = min(seconds, LONGEST_CLAIM_S)
        self._claim_s += (seconds - self._claim_s) * (_WEIGHT if self._claim_s else 1.0)

    def ahead(self, devices: int) -> int:
        """How many jobs so many devices can end while one passes, rounded down; 0 if they are not quick."""
        if not self._quick_in_a_row or self._job_s > QUICK_S:
            return 0
        return min(int(devices * ROUND_TRIPS * self._claim_s / self._job_s), AHEAD_AN_END * self._quick_in_a_row)

    def together(self) -> int:
        """How many jobs a device can end in `TOGETHER_S`, 1...`MOST_TOGETHER`."""
        quick = self._quick_in_a_row
        return max(1, min(int(TOGETHER_S / self._job_s), MOST_TOGETHER, quick)) if quick else 1

    @property
    def _quick_in_a_row(self) -> int:
        return self._quick_ends if self._clock() - self._ended_at <= REMEMBERED_S else 0
