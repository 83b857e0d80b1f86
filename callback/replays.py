"""Which signed requests have come, for as long as they are fresh: none counts twice, whichever ingress it meets."""

from collections import deque

from callback.clock import Clock
from callback.errors import RequestReplayed, TrackerUnavailable
from callback.records import Remember

MAX_REMEMBERED = 500_000
"""Some 100 MB. More in a window of seconds is an attack; then signed requests have to wait."""


class Replays:
    """Remembers requests in memory. Of what was signed before this memory begins it cannot tell, and says no."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begins_at = clock.now()
        self._asked_by: dict[str, str] = {}
        self._ends: deque[tuple[float, str]] = deque()

    async def remember(self, command: Remember) -> bool:
        """Return True for a request that has not come before, also to the same asker again.

        Raises `RequestReplayed`, and `TrackerUnavailable` while too many are remembered.
        """
        self._forget_old()
        if command.signed_at < self._begins_at:
            raise RequestReplayed(
                "The request was signed before this server began to remember requests, after a restart. Sign it anew."
            )
        asked_by = self._asked_by.get(command.request)
        if asked_by is not None and asked_by != command.asker:
            raise RequestReplayed("The request came before. Sign each one with a UUID of its own.")
        if asked_by is None:
            if len(self._asked_by) >= MAX_REMEMBERED:
                raise TrackerUnavailable("Too many signed requests come at once. Try again in a few seconds.")
            self._asked_by[command.request] = command.asker
            self._ends.append((self._clock.steady() + command.for_s, command.request))
        return True

    def _forget_old(self) -> None:
        now = self._clock.steady()
        while self._ends and self._ends[0][0] < now:
            del self._asked_by[self._ends.popleft()[1]]
