"""Keys of a moment ago."""

import time


class RecentKeys:
    """The keys that were added within the last `for_s` seconds. Others are held until the next one is added at most."""

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self._added: dict[str, float] = {}

    def add(self, key: str) -> None:
        """Hold the key from now on, also if it is held already."""
        self.discard(key)
        now = time.monotonic()
        # They are in the order in which they were added.
        while self._added and self._added[first := next(iter(self._added))] < now - self._for_s:
            del self._added[first]
        self._added[key] = now

    def discard(self, key: str) -> None:
        """Hold the key no longer, if it is held."""
        self._added.pop(key, None)

    def __contains__(self, key: str) -> bool:
        added = self._added.get(key)
        return added is not None and added >= time.monotonic() - self._for_s
