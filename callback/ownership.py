"""Who may take a store over: a tracker of the same Darkroom at once, one of another only when the owner is silent.

Otherwise two Darkrooms that were given one store by mistake would depose each other for ever.
"""

from dataclasses import dataclass

from callback.clock import Clock
from callback.errors import StoreInUse
from observability.logs import get_logger

HEARTBEAT_S = 5.0
"""How often the owner says that it is there."""
SILENT_S = 15.0
"""An owner that has said nothing for so long is gone. What another machine's clock says does not count for that."""
NOBODY = ""
"""Holder of a store that its last owner gave up."""
_NAMELESS = "pid "
"""Earlier code wrote its process id, and did not say which Darkroom it was of."""

_log = get_logger("tracker")


@dataclass(frozen=True, slots=True)
class Ownership:
    """The owner in the store. `seen_at` is when it was last there, by its own clock.

    `holder` names that clock (a machine, since it was booted), then the Darkroom, with a `/` between.
    """

    epoch: int
    holder: str
    seen_at: float

    @property
    def darkroom(self) -> str:
        """Whose tracker it is, on whichever machine."""
        clock, slash, darkroom = self.holder.partition("/")
        return darkroom if slash else clock

    @property
    def clock(self) -> str:
        """Whose time `seen_at` is."""
        return self.holder.partition("/")[0]


class Succession:
    """Judges the owners that a tracker of `holder` finds, one look after the other."""

    def __init__(self, holder: str, clock: Clock) -> None:
        self.holder = holder
        self._ours = Ownership(0, holder, 0.0)
        self._clock = clock
        self._found: Ownership | None = None
        self._unchanged_since = 0.0
        self.last_seen_at: float | None = None
        """When the owner that was checked last said that it was there, by its clock."""

    def check(self, found: Ownership) -> None:
        """Return if the store may be taken from this owner. Raises `StoreInUse`."""
        self.last_seen_at = found.seen_at
        if found.darkroom in {self._ours.darkroom, NOBODY} or found.darkroom.startswith(_NAMELESS):
            return
        steady = self._clock.steady()
        if found != self._found:
            earlier = self._found
            self._found, self._unchanged_since = found, steady
            if earlier is None or earlier.holder != found.holder:
                _log.error("another Darkroom owns the store", extra={"holder": found.holder})
        silent_s = steady - self._unchanged_since
        if found.clock == self._ours.clock:
            silent_s = max(silent_s, self._clock.now() - found.seen_at)
        if silent_s <= SILENT_S:
            raise StoreInUse(
                "Another Darkroom uses this job store, or did until a moment ago. Stop it, or give each a store_url of "
                "its own."
            )
