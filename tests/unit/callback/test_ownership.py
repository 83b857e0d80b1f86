"""Two Darkrooms on one store: the first keeps it as long as it lives, whatever the clocks of two machines say."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from callback.errors import StoreInUse
from callback.ownership import HEARTBEAT_S, SILENT_S, Ownership, Succession
from callback.records import PROTOCOL_VERSION, Rejected, Submit
from callback.schema import tracker_owner
from callback.store import Store
from callback.tracker import JobTracker
from tests.unit.callback.tracker_kit import Desk, ManualClock, StartDesk, crash, new_job


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_on_one_machine_an_owner_that_was_silent_for_long_is_gone_at_once(clock: ManualClock) -> None:
    mine = Succession("machine/mine", clock)
    with pytest.raises(StoreInUse):
        mine.check(Ownership(1, "machine/theirs", clock.now() - SILENT_S))
    mine.check(Ownership(1, "machine/theirs", clock.now() - SILENT_S - 1))


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_another_machines_owner_is_gone_when_nothing_has_changed_for_long(clock: ManualClock, ahead_s: float) -> None:
    found, mine = Ownership(1, "elsewhere/theirs", clock.now() + ahead_s), Succession("machine/mine", clock)
    with pytest.raises(StoreInUse):
        mine.check(found)
    clock.advance(SILENT_S)
    with pytest.raises(StoreInUse):
        mine.check(found)
    clock.advance(1)
    mine.check(found)


def test_an_owner_that_goes_on_is_never_taken_for_gone(clock: ManualClock) -> None:
    mine = Succession("machine/mine", clock)
    for _ in range(20):
        with pytest.raises(StoreInUse, match="Another Darkroom uses this job store"):
            mine.check(Ownership(1, "elsewhere/theirs", clock.now() - 3600))
        clock.advance(HEARTBEAT_S)


def test_the_same_darkroom_and_earlier_code_are_succeeded_at_once(clock: ManualClock) -> None:
    for holder in ("mine", "pid 7", ""):
        Succession("mine", clock).check(Ownership(1, holder, clock.now()))


def test_a_tracker_that_comes_up_on_another_node_of_its_cluster_succeeds_at_once(clock: ManualClock) -> None:
    mine = Succession("this machine/cluster tracker", clock)
    mine.check(Ownership(1, "that machine/cluster tracker", clock.now()))
    for other in ("that machine/cluster tracker-2", "this machine/cluster-2 tracker"):
        with pytest.raises(StoreInUse):
            mine.check(Ownership(1, other, clock.now()))


def second(desk: Desk) -> JobTracker:
    return JobTracker(desk.config, desk.pictures, holder="another", clock=desk.clock)


async def test_a_second_darkroom_is_refused_and_the_first_goes_on(start: StartDesk) -> None:
    desk = await start()
    late = second(desk)
    (answer,) = await late.execute(PROTOCOL_VERSION, (Submit(new_job("theirs")),))
    assert isinstance(answer, Rejected)
    assert (answer.code, answer.retryable) == ("store_unavailable", True)
    assert "Another Darkroom" in answer.message
    assert (await desk.submit("ours")).job_id == "ours"
    await late.close()


async def test_a_second_darkroom_takes_over_when_the_first_is_gone(start: StartDesk) -> None:
    desk = await start()
    await desk.submit("left behind")
    await crash(desk.tracker)
    late = second(desk)
    with pytest.raises(StoreInUse):
        await late.start()
    desk.clock.advance(SILENT_S + 1)
    await late.start()
    assert await late.get("anyone", "left behind") is not None
    await late.close()


async def test_a_store_that_was_given_up_is_anybodys(start: StartDesk) -> None:
    desk = await start()
    store = Store(desk.config.store_url)
    store.release(desk.tracker._epoch)
    store.close()
    late = second(desk)
    await late.start()
    await late.close()


async def test_a_tracker_that_retires_keeps_the_store_for_its_successor(start: StartDesk) -> None:
    desk = await start()
    await desk.tracker.close()
    late = second(desk)
    with pytest.raises(StoreInUse):
        await late.start()
    await late.close()


async def test_a_running_tracker_says_that_it_is_there(start: StartDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.tracker.HEARTBEAT_S", 0.01)
    desk = await start(tick_s=0.01)
    desk.clock.advance(1000)
    async with asyncio.timeout(10):
        while desk.rows(sa.select(tracker_owner.c.taken_at))[0]["taken_at"] != desk.clock.now():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_second_darkroom_does_not_migrate_a_store_in_use(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    store.prepare()
    store.acquire("theirs", clock.now())
    with store._writer.begin() as tx:
        tx.execute(sa.text("update alembic_version set version_num = '0001'"))
    with pytest.raises(StoreInUse):
        store.prepare(Succession("mine", clock).check)
    with store.reading() as tx:
        assert tx.execute(sa.text("select version_num from alembic_version")).scalar_one() == "0001"
    store.close()
