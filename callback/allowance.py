"""How much of something each client may use per time: a token bucket for each, which may run into debt."""

from collections.abc import Callable


class Allowance:
    """Grants every use to a client that is not in debt. What was used comes back at `per_s` a second, up to `burst`.

    A use is granted whole, also one that is larger than what is left: the client then waits until its debt is paid. So
    nothing is too large to be used at all, and over time nobody uses more than the rate. `steady` tells the time in
    seconds and never goes back.
    """

    def __init__(self, per_s: float, burst: float, steady: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst_s = burst / per_s
        self._steady = steady
        # The moment at which a client has everything back. Whoever is not in it has everything.
        self._whole_at: dict[str, float] = {}

    def wait_s(self, client: str) -> float:
        """Return in how many seconds the client's debt is paid; 0 if it has none."""
        return max(0.0, self._whole_at.get(client, 0.0) - self._steady() - self._burst_s)

    def use(self, client: str, amount: float) -> None:
        """Take `amount` from what the client has."""
        self._whole_at[client] = max(self._whole_at.get(client, 0.0), self._steady()) + amount / self._per_s
