"""A tracker whose store fails."""

import asyncio
import logging
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from callback.courier import LOST_AFTER_S
from callback.errors import SchemaTooNew, StoreUnavailable
from callback.records import PROTOCOL_VERSION, JobView, Rejected, Submit
from callback.schema import jobs
from callback.states import DeliveryState, JobState
from callback.tracker import LONG_PAUSE_S, JobTracker
from stress.callback_server import CallbackServer
from tests.unit.callback.tracker_kit import BOUND_S, Desk, StartDesk, crash, failure, new_job, rejected


def database(desk: Desk) -> str:
    path = sa.make_url(desk.config.store_url).database
    assert path is not None
    return path


BULK = "x" * 200_000
"""More than the free space inside a database of a few jobs."""


@contextmanager
def full_disk(desk: Desk) -> Iterator[None]:
    """Let the database grow no further: SQLite then reports a full disk, at the statement that needs room."""
    pages = 1  # SQLite takes it for as many as there are

    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(desk.tracker._store._writer, "begin", limit)
    try:
        yield
    finally:
        pages = 1_000_000


@contextmanager
def lost_commit_answers(desk: Desk) -> Iterator[None]:
    """Commit, and report a failure: what a connection that breaks in mid-commit looks like."""
    store = desk.tracker._store
    transaction = store.transaction

    @contextmanager
    def broken(epoch: int) -> Iterator[sa.Connection]:
        with transaction(epoch) as tx:
            yield tx
        raise StoreUnavailable("The connection broke.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "transaction", broken)
        yield


async def test_a_full_disk_refuses_and_the_tracker_recovers_by_itself(desk: Desk) -> None:
    await desk.submit("before")

    with full_disk(desk):
        answer = await desk.do(Submit(new_job("refused", request_json=BULK)))
        assert isinstance(answer, Rejected)
        assert (answer.code, answer.retryable) == ("store_unavailable", True)
        assert "full" in answer.message
        assert not (await desk.tracker.health()).accepting or desk.memory_equals_store()

    assert (await desk.submit("after", request_json=BULK)).state is JobState.QUEUED
    assert (await desk.tracker.health()).accepting
    assert await desk.tracker.get("anyone", "refused") is None
    assert desk.memory_equals_store()


async def test_a_report_that_met_a_full_disk_is_taken_when_it_comes_again(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    await desk.renew(claim, step=3)
    report = replace(desk.completion(claim), result_json=BULK)

    with full_disk(desk):
        assert rejected(await desk.do(report)) == "store_unavailable"
    view = await desk.view()
    assert (view.state, view.step) == (JobState.PROCESSING, 3)

    assert await desk.do(report) is True
    assert desk.memory_equals_store()


async def test_claimed_jobs_that_met_a_failing_store_are_claimed_later(desk: Desk) -> None:
    for n in range(3):
        await desk.submit(f"job-{n}")

    with failing_commits(desk):
        assert rejected(await desk.do(desk.claim_command(2))) == "store_unavailable"

    assert [claim.job_id for claim in await desk.claim(5)] == ["job-0", "job-1", "job-2"]
    assert desk.memory_equals_store()


@contextmanager
def failing_commits(desk: Desk) -> Iterator[None]:
    """Fail every transaction at its end, as a read-only or broken disk does."""

    failing = True

    def fail(_connection: sa.Connection) -> None:
        if failing:
            raise sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    sa.event.listen(desk.tracker._store._writer, "commit", fail)
    try:
        yield
    finally:
        failing = False


async def test_while_the_store_fails_the_tracker_says_so_and_keeps_its_leases(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()

    with failing_commits(desk):
        assert rejected(await desk.do(Submit(new_job("refused")))) == "store_unavailable"
        desk.clock.advance(desk.config.lease_s + 1)
        health = await desk.tracker.health()
        assert not health.accepting
        assert "its disk fails" in " ".join(health.degraded)

    assert await desk.renew(claim) == ()
    assert await desk.complete(claim) is True
    assert (await desk.tracker.health()).accepting


async def test_a_locked_database_refuses_within_bounds(start: StartDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.store.BUSY_TIMEOUT_S", 0.1)
    desk = await start()
    with closing(sqlite3.connect(database(desk), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answers = await desk.do_all(*(Submit(new_job(f"job-{n}")) for n in range(100)))
        again = await desk.do_all(*(Submit(new_job(f"job-{n}")) for n in range(100)))
        other.execute("ROLLBACK")

    assert {rejected(answer) for answer in answers + again} == {"store_unavailable"}
    assert (await desk.submit("after")).state is JobState.QUEUED
    assert desk.memory_equals_store()


async def test_a_submission_whose_commit_was_answered_by_silence_is_found_when_it_comes_again(desk: Desk) -> None:
    job = new_job()
    with lost_commit_answers(desk):
        assert rejected(await desk.do(Submit(job))) == "store_unavailable"

    again = await desk.do(Submit(job))

    assert isinstance(again, JobView)
    assert len(desk.rows(jobs.select())) == 1
    assert (await desk.claim_one()).key == job.key
    assert desk.memory_equals_store()


async def test_a_claim_whose_commit_was_answered_by_silence_is_found_when_it_comes_again(desk: Desk) -> None:
    await desk.submit()
    command = desk.claim_command()
    with lost_commit_answers(desk):
        assert rejected(await desk.do(command)) == "store_unavailable"

    claims = await desk.do(command)

    assert isinstance(claims, tuple)
    assert len(claims) == 1
    assert desk.memory_equals_store()


async def test_a_delivery_whose_beginning_was_answered_by_silence_is_sent_all_the_same(
    desk: Desk, receiver: CallbackServer
) -> None:
    await desk.submit(callback_url=receiver.callback_url)
    report = failure(await desk.claim_one())
    with lost_commit_answers(desk):
        assert rejected(await desk.do(report)) == "store_unavailable"

    assert await desk.do(report) is True
    desk.clock.advance(desk.config.callback_timeout_s + LOST_AFTER_S + 1)
    view = await desk.until_settled()

    assert view.delivery is not None
    assert view.delivery.state is DeliveryState.DELIVERED


@contextmanager
def told(message: str) -> Iterator[asyncio.Event]:
    """Yield an event that is set when the tracker logs the message."""
    event = asyncio.Event()
    logger = logging.getLogger("darkroom")

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == message:
                event.set()

    listener = Listener()
    logger.addHandler(listener)
    try:
        yield event
    finally:
        logger.removeHandler(listener)


async def test_an_outcome_that_the_store_did_not_take_is_recorded_when_it_works_again(
    desk: Desk, receiver: CallbackServer
) -> None:
    receiver.misbehave(times=1, delay_s=BOUND_S)
    await desk.submit(callback_url=receiver.callback_url)
    await desk.fail(await desk.claim_one())
    await receiver.wait_for_async("job-1", timeout_s=BOUND_S)
    with failing_commits(desk), told("callback outcome not recorded yet") as not_recorded:
        receiver.behave()
        await asyncio.wait_for(not_recorded.wait(), BOUND_S)

    view = await desk.until_settled()

    assert view.delivery is not None
    assert (view.delivery.state, view.delivery.attempts) == (DeliveryState.DELIVERED, 1)
    assert len(receiver.entries()) == 1


async def test_a_tracker_whose_store_cannot_be_opened_starts_when_it_can(desk: Desk) -> None:
    folder = Path(database(desk)).parent / "not yet"
    folder.write_text("in the way")
    config = replace(desk.config, store_url=f"sqlite:///{folder}/jobs.db")
    late = JobTracker(config, desk.pictures, clock=desk.clock)
    try:
        answer = (await late.execute(PROTOCOL_VERSION, (Submit(new_job()),)))[0]
        assert rejected(answer) == "store_unavailable"
        assert not (await late.health()).accepting
        folder.unlink()

        assert isinstance((await late.execute(PROTOCOL_VERSION, (Submit(new_job()),)))[0], JobView)
        assert (await late.health()).accepting
    finally:
        await crash(late)


async def test_a_file_that_is_no_database_is_told_and_left_alone(desk: Desk) -> None:
    path = Path(database(desk)).with_name("notes.txt")
    path.write_text("no database" * 100)
    tracker = JobTracker(replace(desk.config, store_url=f"sqlite:///{path}"), desk.pictures)

    with pytest.raises(StoreUnavailable, match="its file is damaged"):
        await tracker.start()

    assert path.read_text() == "no database" * 100
    await crash(tracker)


async def test_a_database_of_a_newer_version_is_refused(desk: Desk) -> None:
    with closing(sqlite3.connect(database(desk))) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    tracker = JobTracker(desk.config, desk.pictures, clock=desk.clock)

    with pytest.raises(SchemaTooNew, match="9999"):
        await tracker.start()

    assert rejected((await tracker.execute(PROTOCOL_VERSION, (Submit(new_job()),)))[0]) == "schema_too_new"
    await crash(tracker)


async def test_trackers_that_fail_to_start_leave_no_threads(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr("callback.job_rows.open_jobs", broken)
    tracker = JobTracker(desk.config, desk.pictures, clock=desk.clock)
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await tracker.start()

    assert threading.active_count() < before + 5  # the loop's own threads may come and stay
    await crash(tracker)


async def test_only_the_services_user_can_read_the_secrets_in_the_database(desk: Desk) -> None:
    await desk.submit(callback_url="http://192.0.2.1/", secret="s3cret")

    for path in Path(database(desk)).parent.glob("jobs.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_pause_of_the_process_costs_no_leases(desk: Desk) -> None:
    await desk.submit()
    claim = await desk.claim_one()
    granted = desk.tracker._board.get(claim.key)
    assert granted is not None
    until = granted.lease_until

    time.sleep(LONG_PAUSE_S + 0.5)  # noqa: ASYNC251 - a process that does not run
    async with asyncio.timeout(BOUND_S):
        while granted.lease_until == until:  # noqa: ASYNC110 - a lease tells nobody
            await asyncio.sleep(0)

    assert granted.lease_until >= until + LONG_PAUSE_S
