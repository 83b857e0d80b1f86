import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from callback import retention
from callback.errors import Deposed
from callback.records import JobView, Submit, artifact_key, earlier_artifact_key
from callback.schema import deliveries, delivery_attempts
from stress.callback_server import CallbackServer
from tests.unit.callback.retention_kit import DAY_S, job_ids, rendered, sweep
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk, new_job, rejected


@pytest.fixture(autouse=True)
def _no_shortest_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests keep jobs for seconds; `test_a_command_that_is_sent_again...` puts it back."""
    monkeypatch.setattr(retention, "SHORTEST_RETENTION_S", 0.0)


async def test_jobs_are_forgotten_with_their_pictures_after_the_retention(desk: Desk) -> None:
    await rendered(desk, "old")
    desk.clock.advance(desk.config.retention_s - 10)
    young = await rendered(desk, "young")
    desk.clock.advance(20)

    await sweep(desk)

    assert job_ids(desk) == ["young"]
    assert desk.pictures.keys() == {artifact_key(young.key, 1)}
    assert await desk.tracker.get("anyone", "old") is None


async def test_a_command_that_is_sent_again_finds_its_job_whatever_the_retention(
    start: StartDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SHORTEST_RETENTION_S", 60.0)
    desk = await start(retention_s=0.0)
    submit = Submit(new_job())
    first = await desk.do(submit)
    await desk.complete(await desk.claim_one())
    desk.clock.advance(30)

    await sweep(desk)
    again = await desk.do(submit)
    desk.clock.advance(31)
    await sweep(desk)

    assert isinstance(first, JobView)
    assert isinstance(again, JobView)
    assert again.key == first.key
    assert job_ids(desk) == []


async def test_half_written_pictures_of_dead_writers_are_removed_now_and_then(desk: Desk) -> None:
    young, old = (desk.pictures.folder / name for name in (".1.png.young.tmp", ".1.png.old.tmp"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))

    await sweep(desk)
    assert (young.exists(), old.exists()) == (True, False)

    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    await sweep(desk)
    assert old.exists()
    desk.clock.advance(retention.LEFTOVERS_EVERY_S + 1)
    await sweep(desk)
    assert not old.exists()


async def test_a_picture_store_that_hangs_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_TIMEOUT_S", 0.05)
    hanging = threading.Event()
    monkeypatch.setattr(desk.pictures, "delete", lambda _: hanging.wait(BOUND_S))
    await rendered(desk, "old")
    desk.clock.advance(desk.config.retention_s + 10)

    with pytest.raises(TimeoutError):
        await sweep(desk)
    hanging.set()
    await sweep(desk)

    assert job_ids(desk) == []


async def test_open_jobs_are_never_forgotten(start: StartDesk) -> None:
    desk = await start(retention_s=1.0, queue_timeout_s=10 * DAY_S)
    await desk.submit("waiting")
    desk.clock.advance(DAY_S)

    await sweep(desk)

    assert job_ids(desk) == ["waiting"]


async def test_a_job_is_kept_until_its_callback_is_settled_for_good(start: StartDesk, receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503)
    desk = await start(retention_s=10.0)
    await rendered(desk, "job-1", callback_url=receiver.callback_url)
    await desk.until_settled()
    desk.clock.advance(11)
    await desk.until_settled(attempts=2)

    await sweep(desk)
    assert job_ids(desk) == ["job-1"]

    receiver.behave()
    desk.clock.advance(10)
    await desk.until(lambda view: view.delivery is not None and view.delivery.final)
    await sweep(desk)

    assert job_ids(desk) == []
    assert desk.rows(deliveries.select()) == desk.rows(delivery_attempts.select()) == []


async def test_pictures_of_lost_attempts_go_with_their_job(desk: Desk) -> None:
    await desk.submit()
    for name in (artifact_key, earlier_artifact_key):
        lost = await desk.claim_one()
        desk.pictures.publish(name(lost.key, lost.attempt), b"published, but its report was lost")
        await desk.release(lost)
    await desk.complete(await desk.claim_one())
    assert len(desk.pictures.keys()) == 3
    desk.clock.advance(desk.config.retention_s + 1)

    await sweep(desk)

    assert desk.pictures.keys() == set()


@pytest.mark.defect("D3")
async def test_the_oldest_pictures_go_when_there_are_too_many_bytes(start: StartDesk) -> None:
    desk = await start(retention_bytes=1000)
    views = []
    for n in range(5):
        views.append(await rendered(desk, f"job-{n}", size_bytes=300))
        desk.clock.advance(1)

    await sweep(desk)

    assert desk.pictures.keys() == {artifact_key(view.key, 1) for view in views[2:]}
    assert [(await desk.view(f"job-{n}")).picture_deleted for n in range(5)] == [True, True, False, False, False]
    assert len(job_ids(desk)) == 5


async def test_a_picture_that_is_still_to_be_sent_is_kept_however_many_bytes_there_are(
    start: StartDesk, receiver: CallbackServer
) -> None:
    receiver.misbehave(answer_status=503)
    desk = await start(retention_bytes=0)
    unsent = await rendered(desk, "unsent", callback_url=receiver.callback_url)
    await desk.until_settled("unsent")
    await rendered(desk, "unneeded")

    await sweep(desk)

    assert desk.pictures.keys() == {artifact_key(unsent.key, 1)}


async def test_a_picture_that_was_removed_cannot_be_sent_again(start: StartDesk, receiver: CallbackServer) -> None:
    desk = await start(retention_bytes=0)
    await rendered(desk, "job-1", callback_url=receiver.callback_url)
    await desk.until_settled()
    await sweep(desk)

    assert rejected(await desk.redeliver()) == "not_redeliverable"


async def test_more_old_jobs_than_one_batch_are_forgotten_in_one_sweep(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callback.retention.BATCH", 3)
    for n in range(8):
        await rendered(desk, f"job-{n}")
    desk.clock.advance(desk.config.retention_s + 1)

    await sweep(desk)

    assert job_ids(desk) == []
    assert desk.pictures.keys() == set()


async def test_retention_runs_by_itself(start: StartDesk) -> None:
    desk = await start(retention_interval_s=0.02, retention_s=10.0)
    await rendered(desk, "old")
    desk.clock.advance(11)

    async with asyncio.timeout(BOUND_S):
        while await desk.tracker.get("anyone", "old") is not None:  # noqa: ASYNC110 - forgetting tells nobody
            await asyncio.sleep(0.01)


async def test_a_picture_store_that_fails_is_reported_and_does_not_end_retention(
    start: StartDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await start(retention_interval_s=0.02, retention_s=10.0)
    await rendered(desk, "old")
    failed = asyncio.Event()
    loop, delete = asyncio.get_running_loop(), desk.pictures.delete

    def broken(_key: str) -> None:
        loop.call_soon_threadsafe(failed.set)
        raise RuntimeError("the object store is away")

    monkeypatch.setattr(desk.pictures, "delete", broken)
    desk.clock.advance(11)
    await asyncio.wait_for(failed.wait(), BOUND_S)
    async with asyncio.timeout(BOUND_S):
        while "RuntimeError" not in " ".join((await desk.tracker.health()).degraded):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert job_ids(desk) == ["old"]

    monkeypatch.setattr(desk.pictures, "delete", delete)
    async with asyncio.timeout(BOUND_S):
        while job_ids(desk) or (await desk.tracker.health()).degraded:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---- what happens meanwhile ------------------------------------------------------------------------------------------


async def old_and_delivered(start: StartDesk, receiver: CallbackServer, **settings: object) -> tuple[Desk, JobView]:
    """Return a desk with one delivered job that retention wants to remove, and a receiver that takes no more."""
    desk = await start(**settings)
    view = await rendered(desk, "job-1", callback_url=receiver.callback_url)
    await desk.until_settled()
    receiver.misbehave(answer_status=503)
    desk.clock.advance(11)
    return desk, view


DUE = pytest.mark.parametrize(
    "settings", [{"retention_s": 10.0}, {"retention_bytes": 0}], ids=["old", "too many bytes"]
)


@DUE
async def test_a_job_that_is_redelivered_before_its_picture_is_marked_is_kept_with_it(
    start: StartDesk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    desk, view = await old_and_delivered(start, receiver, **settings)
    sweeper, read = desk.tracker._retention, desk.tracker._retention._read

    async def read_and_redeliver(query: Callable[[sa.Connection], Any]) -> Any:
        found = await read(query)
        assert isinstance(await desk.redeliver(), JobView)
        return found

    monkeypatch.setattr(sweeper, "_read", read_and_redeliver)
    await sweep(desk)

    assert job_ids(desk) == ["job-1"]
    assert desk.pictures.keys() == {artifact_key(view.key, 1)}
    assert not desk.stored(view.key).picture_deleted


@DUE
async def test_a_job_whose_picture_is_being_deleted_is_not_redelivered(
    start: StartDesk, receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    desk, _ = await old_and_delivered(start, receiver, **settings)
    loop, delete = asyncio.get_running_loop(), desk.pictures.delete
    begun, go_on = asyncio.Event(), threading.Event()

    def slow(key: str) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(BOUND_S)
        delete(key)

    monkeypatch.setattr(desk.pictures, "delete", slow)
    sweeping = asyncio.create_task(sweep(desk))
    try:
        await asyncio.wait_for(begun.wait(), BOUND_S)
        assert rejected(await desk.redeliver()) == "not_redeliverable"
    finally:
        go_on.set()
    await asyncio.wait_for(sweeping, BOUND_S)

    assert desk.pictures.keys() == set()


@DUE
async def test_a_tracker_that_was_replaced_deletes_no_picture(
    start: StartDesk, receiver: CallbackServer, settings: dict[str, object]
) -> None:
    desk, view = await old_and_delivered(start, receiver, **settings)
    await start()

    with pytest.raises(Deposed):
        await sweep(desk)

    assert desk.pictures.keys() == {artifact_key(view.key, 1)}


# ---- pictures that cannot be deleted ---------------------------------------------------------------------------------


def keep_undeletable(desk: Desk, monkeypatch: pytest.MonkeyPatch, keys: set[str]) -> None:
    delete = desk.pictures.delete

    def refuse(key: str) -> None:
        if key in keys:
            raise PermissionError("/mnt/pictures is not ours")
        delete(key)

    monkeypatch.setattr(desk.pictures, "delete", refuse)


@DUE
async def test_pictures_that_cannot_be_deleted_keep_no_others(
    start: StartDesk, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    monkeypatch.setattr("callback.retention.BATCH", 2)
    desk = await start(**settings)
    views = [await rendered(desk, f"job-{n}") for n in range(7)]
    desk.clock.advance(11)
    kept = {artifact_key(view.key, 1) for view in views[:3]}
    with monkeypatch.context() as patch:
        keep_undeletable(desk, patch, kept)
        await sweep(desk)
        await sweep(desk)
    assert desk.pictures.keys() == kept
    assert desk.tracker._retention.trouble == "Pictures of 3 jobs cannot be deleted (PermissionError)."
    if "retention_s" in settings:
        assert job_ids(desk) == ["job-0", "job-1", "job-2"]

    await sweep(desk)

    assert desk.pictures.keys() == set()
    assert desk.tracker._retention.trouble is None
    if "retention_s" in settings:
        assert job_ids(desk) == []


async def test_a_sweep_ends_when_very_many_pictures_cannot_be_deleted(
    start: StartDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callback.retention.BATCH", 2)
    monkeypatch.setattr("callback.retention.MAX_UNDELETED", 4)
    desk = await start(retention_s=10.0)
    views = [await rendered(desk, f"job-{n}") for n in range(7)]
    desk.clock.advance(11)
    keep_undeletable(desk, monkeypatch, {artifact_key(view.key, 1) for view in views})

    await sweep(desk)

    assert [desk.stored(view.key).picture_deleted for view in views] == [True] * 4 + [False] * 3
