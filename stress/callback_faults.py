"""Misbehaviour of a receiver, set while it runs: slow, refusing, or cutting the connection."""

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Misbehaviour:
    """What a receiver does to one callback instead of answering 200 at once.

    First it waits `delay_s`; then it cuts the connection, or answers `answer_status` (None: as usual) with
    `answer_body` and `answer_headers` (`Location`, `Retry-After`).
    """

    delay_s: float = 0.0
    answer_status: int | None = None
    drop_connection: bool = False
    answer_body: str = ""
    answer_headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answer_status is not None and not 200 <= self.answer_status <= 599:
            raise ValueError(f"answer_status is {self.answer_status}. Pass a final HTTP code, 200 to 599.")

    @property
    def body(self) -> str:
        """The body to send; HTTP forbids one with 204 and 304."""
        return "" if self.answer_status in {204, 304} else self.answer_body


WELL_BEHAVED = Misbehaviour()


@dataclass
class _Scene:
    misbehaviour: Misbehaviour
    left: int | None


class FaultScript:
    """A queue of misbehaviours; each callback takes the next. Safe to change from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scenes: deque[_Scene] = deque()
        self._delays: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def add(self, misbehaviour: Misbehaviour, times: int | None) -> None:
        """Queue `misbehaviour` for the next `times` callbacks, or, with None, for all until `clear`."""
        if times is not None and times < 1:
            raise ValueError(f"times is {times}. Pass 1 or more, or None for every callback.")
        with self._lock:
            self._scenes.append(_Scene(misbehaviour, times))

    def clear(self) -> None:
        """Drop what is queued and end every delay that is running."""
        with self._lock:
            self._scenes.clear()
            for event, loop in self._delays.items():
                loop.call_soon_threadsafe(event.set)

    def take(self) -> Misbehaviour:
        """Return what to do to this callback and count it."""
        with self._lock:
            if not self._scenes:
                return WELL_BEHAVED
            scene = self._scenes[0]
            if scene.left is not None:
                scene.left -= 1
                if scene.left == 0:
                    self._scenes.popleft()
            return scene.misbehaviour

    async def delay(self, seconds: float) -> None:
        """Wait `seconds`, or less if `clear` is called meanwhile."""
        if seconds <= 0:
            return
        event = asyncio.Event()
        with self._lock:
            self._delays[event] = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            with self._lock:
                del self._delays[event]
