"""Which signed requests have come, for as long as they are fresh: none counts twice, whichever ingress it meets."""

from collections import deque

from callback.clock import Clock
from callback.errors import ReplaysUnknown, RequestReplayed, TrackerUnavailable
from callback.records import Remember

MAX_REMEMBERED = 500_000
"""Some 200 MB. More in a window of seconds is an attack; then signed requests have to wait."""
MARGIN_S = 10.0
"""Kept for longer: a request's age is judged elsewhere, by the clocks of other nodes, and messages take time."""


class Replays:
    """Remembers requests in memory. Of what may have come before this memory begins it cannot tell, and says no."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begins_at = clock.steady()
        self._asked_by: dict[str, str] = {}
        self._ends: deque[tuple[float, str]] = deque()

    async def remember(self, command: Remember) -> bool:
        """Return True for a request that has not come before, also to the same asker again.

        Raises `RequestReplayed`, `ReplaysUnknown`, and `TrackerUnavailable` while too many are remembered.
        """
        self._forget_old()
        # It is fresh from so long before the time in it, by a clock that is ahead, until so long after. By the steady
        # clock: those of other nodes, by which it was found to be fresh, may differ by the margin from each other.
        wait_s = self._begins_at + _kept_s(command) - self._clock.steady()
        if wait_s > 0:
            raise ReplaysUnknown(
                "After a restart this server cannot tell yet whether a request came before. Sign it again soon.",
                max(1.0, wait_s),
            )
        asked_by = self._asked_by.get(command.request)
        if asked_by is not None and asked_by != command.asker:
            raise RequestReplayed("The request came before. Sign each one with a UUID of its own.")
        if asked_by is None:
            if len(self._asked_by) >= MAX_REMEMBERED:
                raise TrackerUnavailable("Too many signed requests come at once. Try again in a few seconds.")
            self._asked_by[command.request] = command.asker
            self._ends.append((self._clock.steady() + _kept_s(command), command.request))
        return True

    def _forget_old(self) -> None:
        now = self._clock.steady()
        while self._ends and self._ends[0][0] < now:
            del self._asked_by[self._ends.popleft()[1]]


def _kept_s(command: Remember) -> float:
    return 2 * command.fresh_s + MARGIN_S
