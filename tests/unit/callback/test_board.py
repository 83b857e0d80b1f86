import asyncio
from dataclasses import replace
from itertools import count

import pytest

from callback import board as board_module
from callback.board import CHANGES_KEPT, Board, Entry
from callback.records import Cursor, JobView
from callback.states import JobState
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk

_numbers = count(1)


def open_job(**fields: object) -> Entry:
    n = next(_numbers)
    view = JobView(
        key=f"key-{n}",
        owner="anyone",
        job_id=f"job-{n}",
        kind="text_to_image",
        model="sd",
        state=JobState.QUEUED,
        seq=n,
        attempt=0,
        request_json="{}",
        fingerprint="f",
        queued_at=0.0,
        has_callback=False,
    )
    return Entry(replace(view, **fields), waiting_since=0.0)  # type: ignore[arg-type]


async def test_a_new_reader_is_told_all_open_jobs() -> None:
    board = Board(epoch=3)
    entries = [open_job(), open_job()]
    for entry in entries:
        board.put(entry)
    board.drop(replace(entries[0].view, state=JobState.FAILED))

    changes = await board.changes(Cursor(), 0)

    assert changes.reset
    assert changes.views == (entries[1].view,)


async def test_a_reader_is_told_the_latest_view_of_what_changed_and_nothing_else() -> None:
    board = Board(epoch=3)
    entries = [open_job(), open_job(), open_job()]
    for entry in entries:
        board.put(entry)
    cursor = (await board.changes(Cursor(), 0)).cursor
    for step in (1, 2, 3):
        board.update(entries[0].view.key, step=step)
    ended = replace(entries[2].view, state=JobState.COMPLETED)
    board.drop(ended)

    changes = await board.changes(cursor, 0)

    assert not changes.reset
    assert changes.views == (replace(entries[0].view, step=3), ended)
    assert (await board.changes(changes.cursor, 0)).views == ()


async def test_a_reader_of_an_earlier_tracker_is_told_everything_anew() -> None:
    board = Board(epoch=3)
    entry = open_job()
    board.put(entry)
    now = (await board.changes(Cursor(), 0)).cursor

    changes = await board.changes(replace(now, epoch=2), 0)

    assert changes.reset
    assert changes.views == (entry.view,)


async def test_a_reader_that_fell_behind_is_told_everything_anew() -> None:
    board = Board(epoch=3)
    entry, other = open_job(), open_job()
    board.put(entry)
    cursor = (await board.changes(Cursor(), 0)).cursor
    for step in range(CHANGES_KEPT + 1):
        board.update(entry.view.key, step=step)
    board.put(other)

    changes = await board.changes(cursor, 0)

    assert changes.reset
    assert changes.views == (entry.view, other.view)


async def test_a_reader_just_not_too_far_behind_misses_nothing() -> None:
    board = Board(epoch=3)
    entries = [open_job() for _ in range(CHANGES_KEPT)]
    cursor = (await board.changes(Cursor(), 0)).cursor
    for entry in entries:
        board.put(entry)

    changes = await board.changes(cursor, 0)

    assert not changes.reset
    assert len(changes.views) == CHANGES_KEPT


async def test_memory_that_was_read_anew_is_told_anew_at_once_even_if_it_is_empty() -> None:
    board = Board(epoch=3)
    board.put(open_job())
    cursor = (await board.changes(Cursor(), 0)).cursor
    waiting = asyncio.create_task(board.changes(cursor, BOUND_S))
    await asyncio.sleep(0)

    board.replace_all([])

    changes = await asyncio.wait_for(waiting, 1)
    assert changes.reset
    assert changes.views == ()


async def test_a_waiting_reader_is_woken_by_a_change() -> None:
    board = Board(epoch=3)
    cursor = (await board.changes(Cursor(), 0)).cursor
    readers = [asyncio.create_task(board.changes(cursor, BOUND_S)) for _ in range(5)]
    await asyncio.sleep(0)
    entry = open_job()

    board.put(entry)

    for changes in await asyncio.wait_for(asyncio.gather(*readers), 1):
        assert changes.views == (entry.view,)


async def test_a_change_that_comes_as_the_wait_ends_is_not_lost() -> None:
    board = Board(epoch=3)
    entry = open_job()
    board.put(entry)
    told, cursor = 0, (await board.changes(Cursor(), 0)).cursor
    done = asyncio.Event()

    async def read() -> None:
        nonlocal told, cursor
        while not done.is_set():
            changes = await board.changes(cursor, 0.001)
            told = max([told, *(view.step for view in changes.views)])
            cursor = changes.cursor

    reader = asyncio.create_task(read())
    for step in range(1, 200):
        board.update(entry.view.key, step=step)
        await asyncio.sleep(0.001)
        async with asyncio.timeout(1):
            while told < step:  # noqa: ASYNC110 - the reader is what is tested
                await asyncio.sleep(0)
    done.set()
    await reader


async def test_a_reader_that_goes_away_while_it_waits_leaves_at_once() -> None:
    board = Board(epoch=3)
    cursor = (await board.changes(Cursor(), 0)).cursor
    reader = asyncio.create_task(board.changes(cursor, BOUND_S))
    await asyncio.sleep(0)
    board.put(open_job())
    reader.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_a_job_that_was_taken_and_given_back_keeps_its_place() -> None:
    board = Board(epoch=3)
    entries = [open_job() for _ in range(3)]
    for entry in entries:
        board.put(entry)

    taken = board.take_queued("sd", 2)
    board.requeue(taken[0].key)

    assert [view.key for view in board.take_queued("sd", 5)] == [entries[0].view.key, entries[2].view.key]


async def test_the_head_of_a_queue_is_the_job_that_comes_next() -> None:
    board = Board(epoch=3)
    entries = [open_job(), open_job()]
    for entry in reversed(entries):
        board.put(entry)

    assert board.head("sd") is entries[0]
    assert board.head("flux") is None
    assert board.queued() == {"sd": 2}


async def test_the_change_stream_goes_on_over_a_takeover(desk: Desk, start: StartDesk) -> None:
    await desk.submit("before")
    cursor = (await desk.tracker.changes(Cursor(), 0)).cursor
    successor = await start()

    changes = await successor.tracker.changes(cursor, 1)

    assert changes.reset
    assert [view.job_id for view in changes.views] == ["before"]
    assert changes.cursor.epoch == cursor.epoch + 1


async def test_memory_does_not_grow_with_history(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        await desk.submit(f"job-{n}")
        await desk.complete(await desk.claim_one())

    board = desk.tracker._board
    assert len(board) == 0
    assert not board._keys_by_id
    assert not any(board._queues.values())
    assert board._changes.maxlen == board_module.CHANGES_KEPT
    assert not desk.tracker._lifecycle.claims._under_way
    assert desk.tracker._courier.under_way == 0
    assert not desk.tracker._courier._first._gates


async def test_health_tells_queue_and_age_of_its_head(desk: Desk) -> None:
    await desk.submit("a")
    desk.clock.advance(10)
    await desk.submit("b")
    await desk.submit("c", model="flux")

    health = await desk.tracker.health()

    assert (health.accepting, health.degraded, health.open_jobs) == (True, (), 3)
    assert health.queued == {"sd": 2, "flux": 1}
    assert health.head_age_s == {"sd": 10.0, "flux": 0.0}
