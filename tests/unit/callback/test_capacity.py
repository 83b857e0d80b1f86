"""Turns to send: bounded bytes, bounded slots, nobody waits for ever."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import pytest

from callback.capacity import RECEIVER_SHARE, ByteRoom, Capacity, NoTurn
from callback.config import TrackerConfig
from tests.unit.callback.tracker_kit import BOUND_S


class Visit:
    """Something in the room, or in the line before it, until it is told to leave."""

    def __init__(self, room: ByteRoom, size_bytes: int) -> None:
        self.inside = False
        self._leaving = asyncio.Event()
        self._room, self._size_bytes = room, size_bytes
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._room.hold(self._size_bytes):
            self.inside = True
            await self._leaving.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leaving.set()
        await self.task
        await _let_all_move()


async def _let_all_move() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def visits(room: ByteRoom, *sizes_bytes: int) -> list[Visit]:
    started = []
    for size_bytes in sizes_bytes:
        started.append(Visit(room, size_bytes))
        await _let_all_move()
    return started


async def test_no_more_bytes_are_held_than_the_room_has() -> None:
    room = ByteRoom(10)
    first, second, third = await visits(room, 6, 4, 1)
    assert [visit.inside for visit in (first, second, third)] == [True, True, False]

    await second.leave()

    assert third.inside
    await first.leave()
    await third.leave()


async def test_what_is_larger_than_the_room_goes_alone() -> None:
    room = ByteRoom(10)
    small, large, later = await visits(room, 1, 1000, 10)
    assert not large.inside

    await small.leave()
    assert large.inside
    assert not later.inside

    await large.leave()
    assert later.inside
    await later.leave()


async def test_what_needs_no_bytes_waits_for_nobody() -> None:
    room = ByteRoom(10)
    whole, large, none = await visits(room, 10, 10, 0)

    assert none.inside
    assert not large.inside
    for visit in (whole, large, none):
        await visit.leave()


async def test_the_small_overtake_the_large_until_a_rooms_worth_has_passed() -> None:
    room = ByteRoom(10)
    holding, large = await visits(room, 5, 9)
    overtaking = []
    for _ in range(2):
        (small,) = await visits(room, 5)
        overtaking.append(small.inside)
        await small.leave()
    (patient,) = await visits(room, 5)
    assert overtaking == [True, True]
    assert not patient.inside

    await holding.leave()

    assert large.inside
    assert not patient.inside
    await large.leave()
    assert patient.inside
    await patient.leave()


async def test_who_gives_up_leaves_its_place_to_others() -> None:
    room = ByteRoom(10)
    holding, large, behind = await visits(room, 5, 9, 9)
    (small,) = await visits(room, 5)
    await small.leave()

    large.task.cancel()
    await _let_all_move()
    await holding.leave()

    assert behind.inside
    await behind.leave()
    (all_of_it,) = await visits(room, 10)
    assert all_of_it.inside
    await all_of_it.leave()


async def test_who_gives_up_as_its_turn_comes_keeps_no_bytes() -> None:
    room = ByteRoom(10)
    holding, waiting = await visits(room, 10, 10)

    holding._leaving.set()
    await holding.task  # The waiting one has been let in and does not know it yet.
    waiting.task.cancel()
    await asyncio.gather(waiting.task, return_exceptions=True)

    (all_of_it,) = await visits(room, 10)
    assert all_of_it.inside
    await all_of_it.leave()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_comes_and_goes_the_bound_holds_and_all_get_in(seed: int) -> None:
    chance, size_bytes, held, most = random.Random(seed), 100, 0, 0  # noqa: S311 - no secret
    room, arrived = ByteRoom(size_bytes), []

    async def visit(wanted: int) -> None:
        nonlocal held, most
        async with room.hold(wanted):
            held += min(wanted, size_bytes)
            most = max(most, held)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                held -= min(wanted, size_bytes)
        arrived.append(wanted)

    tasks = [asyncio.create_task(visit(chance.choice((0, 1, 30, 60, 100, 500)))) for _ in range(300)]
    given_up = [task for task in tasks if chance.random() < 0.2]
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    async with asyncio.timeout(BOUND_S):
        await asyncio.gather(*tasks, return_exceptions=True)

    assert most == size_bytes
    assert len(arrived) >= len(tasks) - len(given_up)
    assert held == 0


# ---- of many receivers -----------------------------------------------------------------------------------------------


def soon() -> float:
    return asyncio.get_running_loop().time() + 0.05


async def test_pictures_to_one_receiver_take_only_their_share_of_the_bytes() -> None:
    capacity = Capacity(100, 100, size_bytes=100 * RECEIVER_SHARE)
    async with AsyncExitStack() as held:
        await held.enter_async_context(capacity.turn("slow", 60, soon()))
        with pytest.raises(NoTurn, match="its receiver is busy with 1 earlier"):
            await held.enter_async_context(capacity.turn("slow", 60, soon()))

        await held.enter_async_context(capacity.turn("slow", 0, soon()))
        await held.enter_async_context(capacity.turn("quick", 60, soon()))


@pytest.mark.parametrize(
    ("receivers", "pictures", "size_bytes"), [(4, 10, 5_100_000), (12, 8, 1_500_000), (100, 2, 1_500_000)]
)
async def test_slow_receivers_of_pictures_keep_nobody_else_waiting(
    receivers: int, pictures: int, size_bytes: int
) -> None:
    config = TrackerConfig("sqlite:///unused")
    capacity = Capacity(config.callback_slots, config.callback_slots_per_receiver, config.callback_bytes * 4 // 5)
    async with AsyncExitStack() as held:

        async def take(receiver: str) -> None:
            with suppress(NoTurn):
                await held.enter_async_context(capacity.turn(receiver, size_bytes, soon()))

        await asyncio.gather(*(take(f"slow-{n}") for n in range(receivers) for _ in range(pictures)))
        async with capacity.turn("quick", size_bytes, soon()):
            pass


@pytest.mark.parametrize(
    ("capacity", "sentence"),
    [
        (lambda: Capacity(1, 1, 1000), "all delivery slots are busy"),
        (lambda: Capacity(9, 9, 60), "the pictures of other callbacks take all the memory"),
    ],
)
async def test_a_turn_that_does_not_come_says_what_was_waited_for(
    capacity: Callable[[], Capacity], sentence: str
) -> None:
    full = capacity()
    async with AsyncExitStack() as held:
        await held.enter_async_context(full.turn("one", 50, soon()))
        with pytest.raises(NoTurn, match=sentence):
            await held.enter_async_context(full.turn("other", 50, soon()))

    async with full.turn("other", 50, soon()):
        pass
    assert not full._gates
