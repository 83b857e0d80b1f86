"""Who may send now: how many attempts run side by side, and how many bytes of pictures they hold.

One receiver gets only a part of either, so that slow receivers delay nobody else's attempts (design invariant I7).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

RECEIVER_SHARE = 16
"""Pictures that are sent to one receiver may take this fraction of the bytes: that many receivers which take pictures
without ever answering can be borne at once, and a hundred with a few pictures each."""


class NoTurn(Exception):
    """The turn did not come in time. The message says what was waited for."""


@dataclass(slots=True, eq=False)
class _Waiter:
    size_bytes: int
    admitted: asyncio.Future[None]


class ByteRoom:
    """Room for so many bytes at once.

    Who does not fit waits in line. Smaller ones behind may overtake the first in line, by no more bytes than the room
    has in all: neither the small wait for the large, nor the large for ever. What is larger than the room enters when
    it is empty.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._taken_bytes = 0
        self._waiting: dict[_Waiter, None] = {}
        self._overtaken_bytes = 0

    @asynccontextmanager
    async def hold(self, size_bytes: int) -> AsyncIterator[None]:
        """Wait for room for so many bytes, and keep it for the block. 0 bytes wait for nobody."""
        if not size_bytes:
            yield
            return
        # Counted as the whole room, what is larger shares it with nothing.
        counted_bytes = min(size_bytes, self._size_bytes)
        await self._enter(counted_bytes)
        try:
            yield
        finally:
            self._leave(counted_bytes)

    async def _enter(self, size_bytes: int) -> None:
        if self._may_enter(size_bytes, is_first=not self._waiting):
            self._take(size_bytes, is_first=not self._waiting)
            return
        waiter = _Waiter(size_bytes, asyncio.get_running_loop().create_future())
        self._waiting[waiter] = None
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._remove(waiter)
                self._admit()
            else:
                self._leave(size_bytes)  # It was let in as it gave up.
            raise

    def _leave(self, size_bytes: int) -> None:
        self._taken_bytes -= size_bytes
        self._admit()

    def _may_enter(self, size_bytes: int, *, is_first: bool) -> bool:
        fits = self._taken_bytes + size_bytes <= self._size_bytes
        return fits and (is_first or self._overtaken_bytes < self._size_bytes)

    def _take(self, size_bytes: int, *, is_first: bool) -> None:
        self._taken_bytes += size_bytes
        if not is_first:
            self._overtaken_bytes += size_bytes

    def _remove(self, waiter: _Waiter) -> None:
        if waiter is next(iter(self._waiting)):
            self._overtaken_bytes = 0
        del self._waiting[waiter]

    def _admit(self) -> None:
        for waiter in tuple(self._waiting):
            is_first = waiter is next(iter(self._waiting))
            # Who has given up is still in line until its task has run.
            if not waiter.admitted.done() and self._may_enter(waiter.size_bytes, is_first=is_first):
                self._take(waiter.size_bytes, is_first=is_first)
                self._remove(waiter)
                waiter.admitted.set_result(None)


@dataclass(slots=True)
class _Gate:
    """What limits the attempts at one receiver. `users`: attempts that wait or are inside."""

    room: ByteRoom
    slots: asyncio.Semaphore
    users: int = 0


class Capacity:
    """Slots for attempts and room for the pictures that they hold, in all and for one receiver."""

    def __init__(self, slots: int, slots_per_receiver: int, size_bytes: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._room = ByteRoom(size_bytes)
        self._slots_per_receiver = slots_per_receiver
        self._bytes_per_receiver = max(1, size_bytes // RECEIVER_SHARE)
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def turn(self, receiver: str, size_bytes: int, turn_by: float) -> AsyncIterator[None]:
        """Wait for a slot, and for room for a picture of `size_bytes` (0: none); keep both for the block.

        `turn_by` is a moment of the event loop's clock, in seconds; raises `NoTurn` when it comes first.
        """
        async with AsyncExitStack() as held:
            gate = held.enter_context(self._gate(receiver))
            where = busy = f"its receiver is busy with {gate.users - 1} earlier callbacks"
            try:
                async with asyncio.timeout_at(turn_by):
                    # Bytes before slots: who waits for bytes keeps no slot from those that need few or none.
                    await held.enter_async_context(gate.room.hold(size_bytes))
                    where = "the pictures of other callbacks take all the memory"
                    await held.enter_async_context(self._room.hold(size_bytes))
                    where = busy
                    await held.enter_async_context(gate.slots)
                    where = "all delivery slots are busy"
                    await held.enter_async_context(self._slots)
            except TimeoutError:
                raise NoTurn(f"The callback's turn did not come in time: {where}.") from None
            yield

    @contextmanager
    def _gate(self, receiver: str) -> Iterator[_Gate]:
        gate = self._gates.get(receiver)
        if gate is None:
            gate = _Gate(ByteRoom(self._bytes_per_receiver), asyncio.Semaphore(self._slots_per_receiver))
            self._gates[receiver] = gate
        gate.users += 1
        try:
            yield gate
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[receiver]
