"""Misbehaviour of a receiver, set while it runs: slow, refusing, redirecting, or cutting the connection."""

import asyncio
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_SECONDS = 3600.0
MAX_QUEUED = 1_000

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# The server sets these itself; another value would break the answer in a way that was not asked for.
_RESERVED_HEADERS = {"connection", "content-length", "transfer-encoding"}

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


class Misbehaviour(BaseModel):
    """What a receiver does to a callback instead of answering 200 at once, and to which callbacks.

    First it waits `delay_s`. Then it cuts the connection (`drop_connection`), or answers `answer_status` (None:
    as usual, or 307 with `redirect_to`) with `answer_body` and `answer_headers`; `redirect_to` and `retry_after_s`
    set `Location` and `Retry-After`. The head of the answer is sent at once, its body over `drip_s`.
    Meant are the next `times` callbacks (None: all), those of one job if `job_id` is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    times: Annotated[int | None, Field(le=1_000_000)] = None
    job_id: Annotated[str | None, Field(min_length=1, max_length=1024)] = None
    delay_s: Seconds = 0.0
    drop_connection: bool = False
    answer_status: int | None = None
    answer_body: Annotated[str, Field(max_length=1_000_000)] = "this receiver was told to misbehave"
    answer_headers: Mapping[str, str] = Field(default_factory=dict, max_length=50)
    redirect_to: Annotated[str | None, Field(min_length=1, max_length=4096)] = None
    retry_after_s: Annotated[int | None, Field(ge=0)] = None
    drip_s: Seconds = 0.0

    @field_validator("times")
    @classmethod
    def _some_times(cls, times: int | None) -> int | None:
        if times is not None and times < 1:
            raise ValueError(f"times is {times}. Pass 1 or more, or None for every callback.")
        return times

    @field_validator("answer_status")
    @classmethod
    def _final_status(cls, status: int | None) -> int | None:
        if status is not None and not 200 <= status <= 599:
            raise ValueError(f"answer_status is {status}. Pass a final HTTP code, 200 to 599.")
        return status

    @model_validator(mode="after")
    def _sendable(self) -> Self:
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value) or name.lower() in _RESERVED_HEADERS:
                raise ValueError(f"the header {name!r} cannot be sent as asked. Pass another name or value.")
        if self.drop_connection and (self.status is not None or self.drip_s):
            raise ValueError("a cut connection carries no answer. Pass drop_connection or an answer, not both.")
        if self.drip_s and self.status is not None and not self.body:
            raise ValueError("without a body nothing can be sent slowly. Pass delay_s, or an answer that has a body.")
        return self

    @property
    def status(self) -> int | None:
        """The status to answer; None for the usual one."""
        if self.answer_status is None and self.redirect_to is not None:
            return HTTPStatus.TEMPORARY_REDIRECT
        return self.answer_status

    @property
    def body(self) -> str:
        """The body to send; HTTP forbids one with 204 and 304."""
        return "" if self.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED} else self.answer_body

    @property
    def headers(self) -> dict[str, str]:
        """The headers to send besides the usual ones."""
        headers = dict(self.answer_headers)
        if self.redirect_to is not None:
            headers["Location"] = self.redirect_to
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return headers


WELL_BEHAVED = Misbehaviour()


@dataclass(frozen=True, slots=True)
class Turn:
    """What one callback meets, and how often the script had been cleared when it came."""

    misbehaviour: Misbehaviour
    clears: int


class FaultScript:
    """A queue of misbehaviours; each callback takes the first that means it. Safe to change from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[Misbehaviour] = []
        self._clears = 0
        self._delays: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def add(self, misbehaviour: Misbehaviour) -> None:
        """Queue `misbehaviour` behind the ones that are there.

        Raises:
            ValueError: 1,000 are queued already.
        """
        with self._lock:
            if len(self._queue) >= MAX_QUEUED:
                raise ValueError(f"{MAX_QUEUED} misbehaviours are queued. Clear them first.")
            self._queue.append(misbehaviour)

    def replace(self, queue: Iterable[Misbehaviour]) -> None:
        """Put `queue` in place of what was queued; delays that are running go on."""
        with self._lock:
            self._queue = list(queue)

    def queue(self) -> tuple[Misbehaviour, ...]:
        """Return what is queued, with the `times` that are left."""
        with self._lock:
            return tuple(self._queue)

    def clear(self) -> None:
        """Drop what is queued, and end every delay of the callbacks that have come."""
        with self._lock:
            self._queue.clear()
            self._clears += 1
            for event, loop in self._delays.items():
                loop.call_soon_threadsafe(event.set)

    def take(self, job_id: str) -> Turn:
        """Return what to do to a callback for this job and count it."""
        with self._lock:
            for index, misbehaviour in enumerate(self._queue):
                if misbehaviour.job_id in {None, job_id}:
                    self._count(index, misbehaviour)
                    return Turn(misbehaviour, self._clears)
            return Turn(WELL_BEHAVED, self._clears)

    async def delay(self, turn: Turn, seconds: float) -> bool:
        """Wait `seconds`, or less if `clear` was called since `turn` was taken; tell whether it was the whole time."""
        if seconds <= 0:
            return True
        event = asyncio.Event()
        with self._lock:
            if self._clears != turn.clears:
                return False
            self._delays[event] = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return True
        finally:
            with self._lock:
                del self._delays[event]
        return False

    def _count(self, index: int, misbehaviour: Misbehaviour) -> None:
        if misbehaviour.times is None:
            return
        if misbehaviour.times == 1:
            del self._queue[index]
        else:
            self._queue[index] = misbehaviour.model_copy(update={"times": misbehaviour.times - 1})
