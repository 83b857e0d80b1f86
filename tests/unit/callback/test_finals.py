"""The final jobs in memory: what they show is what the rows say."""

from dataclasses import replace

from callback.board import Board
from callback.finals import RecentFinals
from callback.records import JobView
from callback.states import JobState
from tests.unit.callback.test_board import open_job
from tests.unit.callback.tracker_kit import Desk


def ended(**fields: object) -> JobView:
    return replace(open_job(state=JobState.FAILED).view, **fields)  # type: ignore[arg-type]


def test_the_longest_unchanged_makes_room() -> None:
    finals = RecentFinals(kept=2)
    first, second, third = ended(), ended(), ended()
    for view in (first, second, replace(first, error="changed"), third):
        finals.note(view)
    assert finals.get("anyone", second.job_id) is None
    assert finals.get("anyone", first.job_id) == replace(first, error="changed")
    assert finals.get("anyone", third.job_id) == third
    assert finals.get("another", third.job_id) is None


def test_an_id_leads_to_its_latest_job_whatever_is_told_of_the_earlier_one() -> None:
    finals = RecentFinals()
    earlier, later = ended(job_id="again"), ended(job_id="again")
    finals.note(earlier)
    finals.note(later)
    finals.note(replace(earlier, error="a late outcome"))
    assert finals.get("anyone", "again") == later
    finals.forget([earlier.key])
    assert finals.get("anyone", "again") == later
    finals.forget([later.key])
    assert finals.get("anyone", "again") is None


def test_an_id_that_an_open_job_has_leads_to_no_final_one() -> None:
    board = Board(epoch=1)
    old = ended(job_id="again")
    board.drop(old)
    assert board.known("anyone", "again") == old
    new = open_job(job_id="again")
    board.put(new)
    assert board.known("anyone", "again") == new.view
    board.publish(replace(old, error="a late outcome"))
    assert board.known("anyone", "again") == new.view
    board.drop(replace(new.view, state=JobState.FAILED))
    assert board.known("anyone", "again") == replace(new.view, state=JobState.FAILED)


async def test_polls_of_a_final_job_are_answered_as_the_store_would(desk: Desk) -> None:
    await desk.submit(callback_url="http://127.0.0.1:9/nobody")
    await desk.fail(await desk.claim_one())
    settled = await desk.until(lambda view: view.delivery is not None and view.settled(desk.clock.now()))
    known = desk.tracker._board.known("anyone", settled.job_id)
    desk.tracker._board.finals.clear()
    assert known == settled == await desk.tracker.get("anyone", settled.job_id)
