import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from callback.committer import MAX_GROUP, Committer
from callback.errors import Deposed, QueueFull, StoreUnavailable, Unavailable
from callback.store import Store
from tests.unit.callback.tracker_kit import BOUND_S

notes = sa.Table("notes", sa.MetaData(), sa.Column("text", sa.Text, primary_key=True))


@pytest.fixture
def store(store_url: str) -> Store:
    store = Store(store_url)
    store.prepare()
    with store._writer.begin() as tx:
        notes.create(tx)
    return store


@pytest.fixture
async def committer(store: Store) -> AsyncIterator[Committer]:
    committer = Committer(store, store.acquire("test", 0.0))
    yield committer
    await committer.close()
    store.close()


def write(text: str) -> Callable[[sa.Connection], str]:
    def work(tx: sa.Connection) -> str:
        tx.execute(notes.insert().values(text=text))
        return text

    return work


def written(store: Store) -> set[str]:
    with store.reading() as tx:
        return set(tx.execute(sa.select(notes.c.text)).scalars())


class Held:
    """Keeps the committing thread busy, so that what is sent meanwhile goes into one group."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._go = threading.Event()
        self._busy = threading.Event()

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._committer.run(self._wait))
        await asyncio.to_thread(self._busy.wait, BOUND_S)

    def _wait(self, _tx: sa.Connection) -> None:
        self._busy.set()
        self._go.wait(BOUND_S)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)  # what was sent last is in the queue now
        self._go.set()
        await self._task


def count_transactions(store: Store) -> list[int]:
    begun: list[int] = []
    sa.event.listen(store._writer, "begin", lambda _: begun.append(1))
    return begun


async def test_what_comes_together_is_committed_together(committer: Committer, store: Store) -> None:
    begun = count_transactions(store)
    async with Held(committer):
        results = asyncio.gather(*(committer.run(write(f"note {n}")) for n in range(100)))
        await asyncio.sleep(0)

    assert await results == [f"note {n}" for n in range(100)]
    assert len(begun) == 2
    assert len(written(store)) == 100


async def test_a_group_has_an_upper_bound(committer: Committer, store: Store) -> None:
    begun = count_transactions(store)
    async with Held(committer):
        results = asyncio.gather(*(committer.run(write(f"note {n}")) for n in range(MAX_GROUP + 1)))
        await asyncio.sleep(0)
    await results

    assert len(begun) == 3


async def test_one_bad_unit_does_not_fail_its_neighbours(committer: Committer, store: Store) -> None:
    await committer.run(write("taken"))
    async with Held(committer):
        results = asyncio.gather(
            committer.run(write("a")),
            committer.run(write("taken")),
            committer.run(_broken),
            committer.run(write("b")),
            return_exceptions=True,
        )
        await asyncio.sleep(0)

    first, conflict, broken, second = await results
    assert (first, second) == ("a", "b")
    assert isinstance(conflict, sa.exc.IntegrityError)
    assert isinstance(broken, KeyError)
    assert written(store) == {"taken", "a", "b"}


def _broken(tx: sa.Connection) -> None:
    tx.execute(notes.insert().values(text="undone"))
    raise KeyError("a bug")


async def test_refusals_do_not_cost_their_neighbours_a_transaction_each(committer: Committer, store: Store) -> None:
    def refuse(_tx: sa.Connection) -> None:
        raise QueueFull("full")

    begun = count_transactions(store)
    async with Held(committer):
        results = asyncio.gather(
            *(committer.run(work) for n in range(50) for work in (write(f"note {n}"), refuse)), return_exceptions=True
        )
        await asyncio.sleep(0)

    outcomes = await results
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == [f"note {n}" for n in range(50)]
    assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 50
    assert len(begun) == 2


async def test_results_are_applied_in_the_order_of_the_commits(committer: Committer) -> None:
    applied: list[str] = []
    async with Held(committer):
        results = asyncio.gather(*(committer.run(write(f"note {n}"), applied.append) for n in range(50)))
        await asyncio.sleep(0)
    await results

    assert applied == [f"note {n}" for n in range(50)]


async def test_the_result_of_a_caller_that_went_away_is_applied_all_the_same(
    committer: Committer, store: Store
) -> None:
    applied: list[str] = []
    async with Held(committer):
        leaving = asyncio.create_task(committer.run(write("left behind"), applied.append))
        staying = asyncio.create_task(committer.run(write("stayed"), applied.append))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
    await staying

    assert applied == ["left behind", "stayed"]
    assert written(store) == {"left behind", "stayed"}


async def test_an_apply_that_fails_fails_its_caller_alone(committer: Committer) -> None:
    def broken(_result: Any) -> None:
        raise KeyError("a bug")

    async with Held(committer):
        results = asyncio.gather(committer.run(write("a"), broken), committer.run(write("b")), return_exceptions=True)
        await asyncio.sleep(0)

    failed, fine = await results
    assert isinstance(failed, KeyError)
    assert fine == "b"


async def test_no_unit_of_a_deposed_owner_is_committed(committer: Committer, store: Store) -> None:
    store.acquire("successor", 1.0)

    outcomes = await asyncio.gather(*(committer.run(write(f"note {n}")) for n in range(5)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {Deposed}
    assert written(store) == set()


async def test_a_store_that_fails_at_the_commit_fails_the_whole_group(committer: Committer, store: Store) -> None:
    def fail(_connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("disk I/O error"))

    sa.event.listen(store._writer, "commit", fail)
    outcomes = await asyncio.gather(*(committer.run(write(f"note {n}")) for n in range(5)), return_exceptions=True)
    sa.event.remove(store._writer, "commit", fail)

    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert written(store) == set()
    assert await committer.run(write("later")) == "later"


async def test_a_queue_that_is_too_long_refuses(
    store: Store, monkeypatch: pytest.MonkeyPatch, committer: Committer
) -> None:
    monkeypatch.setattr("callback.committer.MAX_WAITING", 10)
    small = Committer(store, 1)
    async with Held(small):
        waiting = [asyncio.create_task(small.run(write(f"note {n}"))) for n in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="wait for the job store"):
            await small.run(write("one too many"))
    await asyncio.gather(*waiting)
    await small.close()


async def test_closing_commits_what_waits_and_refuses_what_comes_later(store: Store) -> None:
    committer = Committer(store, store.acquire("test", 0.0))
    async with Held(committer):
        waiting = asyncio.create_task(committer.run(write("waited")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(committer.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await committer.run(write("late"))
    await asyncio.wait_for(closing, BOUND_S)

    assert await waiting == "waited"
    assert written(store) == {"waited"}
    store.close()
