"""The final jobs in memory: what they show is what the rows say."""

import sqlite3
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from callback.board import Board
from callback.finals import RecentFinals
from callback.records import DeliveryView, JobView
from callback.schema import jobs
from callback.states import DeliveryState, JobState
from callback.tracker import OWNED_FOR_S
from tests.unit.callback.test_board import open_job
from tests.unit.callback.tracker_kit import UNROUTED, Desk, StartDesk


def ended(**fields: Any) -> JobView:
    return replace(open_job(state=JobState.FAILED).view, **fields)


def test_the_longest_unchanged_makes_room() -> None:
    finals = RecentFinals(kept=2)
    first, second, third = ended(), ended(), ended()
    for view in (first, second):
        finals.add(view)
    finals.update(replace(first, error="changed"))
    finals.add(third)
    assert finals.get("anyone", second.job_id) is None
    assert finals.get("anyone", first.job_id) == replace(first, error="changed")
    assert finals.get("anyone", third.job_id) == third
    assert finals.get("another", third.job_id) is None


def test_an_id_leads_to_its_latest_job_whatever_is_told_of_the_earlier_one() -> None:
    finals = RecentFinals()
    earlier, later = ended(job_id="again"), ended(job_id="again")
    finals.add(earlier)
    finals.add(later)
    finals.update(replace(earlier, error="a late outcome"))
    assert finals.get("anyone", "again") == later
    finals.forget([earlier.key])
    assert finals.get("anyone", "again") == later
    finals.forget([later.key])
    finals.update(replace(earlier, error="a late outcome"))
    assert finals.get("anyone", "again") is None


def test_a_callback_that_is_being_repeated_changes_its_row_silently() -> None:
    delivery = DeliveryView(
        DeliveryState.FAILED, "msg", 1, final=False, settles_by=0.0, payload_status="failed", first_settled_at=1.0
    )
    finals, view = RecentFinals(), ended(delivery=delivery)
    finals.add(view)
    assert finals.get("anyone", view.job_id) is None
    delivered = replace(view, delivery=replace(delivery, state=DeliveryState.DELIVERED, final=True))
    finals.update(delivered)
    assert finals.get("anyone", view.job_id) == delivered


def test_an_id_that_an_open_job_has_leads_to_no_final_one() -> None:
    board = Board(epoch=1)
    first = open_job(job_id="again")
    board.put(first)
    old = replace(first.view, state=JobState.FAILED)
    board.drop(old)
    assert board.known("anyone", "again") == old
    assert board.known("anyone", "again", finals=False) is None
    new = open_job(job_id="again")
    board.put(new)
    assert board.known("anyone", "again") == new.view
    board.publish(replace(old, error="a late outcome"))
    assert board.known("anyone", "again") == new.view
    board.drop(replace(new.view, state=JobState.FAILED))
    assert board.known("anyone", "again") == replace(new.view, state=JobState.FAILED)


async def test_polls_of_a_final_job_are_answered_as_the_store_would(desk: Desk) -> None:
    await desk.submit()
    await desk.fail(await desk.claim_one())
    known = desk.tracker._board.known("anyone", "job-1")
    desk.tracker._board.finals.clear()
    assert known is not None
    assert known == await desk.tracker.get("anyone", "job-1")


async def test_a_late_redelivery_of_a_superseded_job_does_not_bring_it_back(start: StartDesk) -> None:
    desk = await start()
    old = await desk.submit(callback_url=UNROUTED, expiry=desk.clock.now() - 1)
    await desk.fail(await desk.claim_one())
    await desk.submit()
    await desk.fail(await desk.claim_one())
    desk.tracker._board.finals.clear()  # as a restart does
    row = desk.rows(sa.select(jobs).where(jobs.c.key == old.key))[0]
    assert row["superseded_at"] is not None
    desk.tracker._board.publish(replace(old, state=JobState.FAILED, error="a late outcome"))
    current = await desk.tracker.get("anyone", "job-1")
    assert current is not None
    assert current.key != old.key


async def test_a_tracker_that_has_committed_nothing_for_a_while_asks_the_store(desk: Desk) -> None:
    await desk.submit()
    await desk.fail(await desk.claim_one())
    key = (await desk.view()).key
    with sqlite3.connect(desk.config.store_url.removeprefix("sqlite:///")) as successor:
        successor.execute("update jobs set superseded_at = 1 where key = ?", (key,))
    assert (await desk.view()).key == key
    desk.tracker._committed_at -= OWNED_FOR_S + 1
    assert await desk.tracker.get("anyone", "job-1") is None
