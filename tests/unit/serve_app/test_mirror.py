"""The mirror: open jobs from memory, final ones from the tracker, long polls that miss nothing."""

import asyncio
import time
from dataclasses import replace

import pytest
from fakes import FakeTracker, until, view

from callback.errors import TrackerUnavailable
from callback.records import Changes, Cursor, DeliveryView, JobView
from callback.states import DeliveryState, JobState
from serve_app.mirror import Mirror


@pytest.fixture
def tracker() -> FakeTracker:
    return FakeTracker()


@pytest.fixture
def mirror(tracker: FakeTracker) -> Mirror:
    return Mirror(tracker)  # type: ignore[arg-type]


async def tell(mirror: Mirror, tracker: FakeTracker, *views: JobView, reset: bool = False) -> None:
    """Let the mirror read one answer of the change stream."""
    tracker.stream.put_nowait(Changes(Cursor(1, 1), views, reset=reset))
    await mirror.follow()


async def test_an_open_job_is_answered_without_asking_the_tracker(mirror: Mirror, tracker: FakeTracker) -> None:
    await tell(mirror, tracker, view())
    assert await mirror.find("public", "job") == view()
    assert await mirror.find("somebody else", "job") is None
    assert tracker.asked == ["job"]


@pytest.mark.defect("D4")
@pytest.mark.defect("D16")
async def test_a_final_job_is_never_answered_from_memory(mirror: Mirror, tracker: FakeTracker) -> None:
    old = view("old", state=JobState.COMPLETED)
    await tell(mirror, tracker, old)
    # Another ingress replica has accepted a new job under the id, and the stream has not told us yet.
    tracker.answers["job"] = view("new", seq=2)
    found = await mirror.find("public", "job")
    assert found is not None
    assert found.key == "new"


async def test_positions_count_those_that_wait_before(mirror: Mirror, tracker: FakeTracker) -> None:
    first, second, third = (view(f"k{n}", f"job{n}", seq=n) for n in (1, 2, 3))
    await tell(mirror, tracker, first, second)
    assert [mirror.position(one) for one in (first, second, third)] == [1, 2, 3]
    running = replace(first, state=JobState.PROCESSING, started_at=1.0)
    await tell(mirror, tracker, running)
    assert mirror.position(running) is None
    assert mirror.position(second) == 1


async def test_a_long_poll_ends_with_the_job(mirror: Mirror, tracker: FakeTracker) -> None:
    await tell(mirror, tracker, view())
    poll = asyncio.create_task(mirror.wait_until_settled(view(), 30))
    await until(lambda: bool(mirror._watches))
    await tell(mirror, tracker, view(state=JobState.PROCESSING, started_at=1.0))
    assert not poll.done()
    await tell(mirror, tracker, view(state=JobState.COMPLETED))
    assert (await asyncio.wait_for(poll, 2)).state is JobState.COMPLETED
    assert not mirror._watches


async def test_a_long_poll_waits_for_the_first_delivery_attempt_but_not_beyond_its_bound(
    mirror: Mirror, tracker: FakeTracker
) -> None:
    delivery = DeliveryView(
        DeliveryState.PENDING, "msg", 1, final=False, settles_by=time.time() + 0.3, payload_status=""
    )
    ended = view(state=JobState.COMPLETED, delivery=delivery)
    began = time.monotonic()
    settled = await mirror.wait_until_settled(ended, 30)
    assert 0.2 < time.monotonic() - began < 5
    assert settled is ended


async def test_a_long_poll_that_began_with_an_older_view_is_told_what_the_stream_told_before(
    mirror: Mirror, tracker: FakeTracker
) -> None:
    pending = DeliveryView(
        DeliveryState.PENDING, "msg", 1, final=False, settles_by=time.time() + 30, payload_status="completed"
    )
    asked = view(state=JobState.COMPLETED, delivery=pending)
    settled = replace(asked, delivery=replace(pending, state=DeliveryState.DELIVERED, final=True, first_settled_at=1.0))
    # The tracker read the row before the attempt settled, and its answer came after the stream had told so.
    await tell(mirror, tracker, settled)
    tracker.answers["job"] = settled
    assert await asyncio.wait_for(mirror.wait_until_settled(asked, 30), 2) == settled


@pytest.mark.defect("D7")
async def test_a_long_poll_learns_what_it_missed_when_the_tracker_was_replaced(
    mirror: Mirror, tracker: FakeTracker
) -> None:
    await tell(mirror, tracker, view())
    poll = asyncio.create_task(mirror.wait_until_settled(view(), 30))
    await until(lambda: bool(mirror._watches))
    tracker.answers["job"] = view(state=JobState.COMPLETED)
    await tell(mirror, tracker, reset=True)
    assert (await asyncio.wait_for(poll, 2)).state is JobState.COMPLETED
    assert not mirror.has_queued("m")


async def test_a_silent_tracker_does_not_end_the_stream(mirror: Mirror, tracker: FakeTracker) -> None:
    tracker.stream.put_nowait(TrackerUnavailable("silent"))
    await mirror.follow()
    await tell(mirror, tracker, view())
    assert mirror.has_queued("m")


@pytest.mark.defect("D4")
async def test_an_id_that_was_just_given_to_a_new_job_leads_to_it_before_the_stream_tells(
    mirror: Mirror, tracker: FakeTracker
) -> None:
    old, new = view("old", seq=1), view("new", seq=2)
    await tell(mirror, tracker, old)
    mirror.accepted(new)
    assert await mirror.find("public", "job") == new
    # An answer that was on its way tells what the old one was before it ended.
    await tell(mirror, tracker, replace(old, state=JobState.PROCESSING))
    assert await mirror.find("public", "job") == new
    await tell(mirror, tracker, replace(old, state=JobState.COMPLETED), new)
    assert await mirror.find("public", "job") == new
    await tell(mirror, tracker, replace(new, state=JobState.COMPLETED))
    mirror.accepted(new)  # the answer to the submit came last
    await mirror.find("public", "job")
    assert tracker.asked == ["job"]


async def test_jobs_that_are_being_rendered_are_counted_by_model(mirror: Mirror, tracker: FakeTracker) -> None:
    one, other = view("k1", "a", 1, state=JobState.PROCESSING), view("k2", "b", 2, state=JobState.PROCESSING)
    await tell(mirror, tracker, one, other, view("k3", "c", 3))
    assert (len(mirror.processing("m")), len(mirror.processing("another"))) == (2, 0)
    await tell(mirror, tracker, replace(one, state=JobState.COMPLETED), replace(other, state=JobState.QUEUED))
    assert not mirror.processing("m")


async def test_positions_count_that_owners_take_turns(mirror: Mirror, tracker: FakeTracker) -> None:
    views = [view(f"a{n}", f"a{n}", seq=n, owner="a") for n in range(1, 6)]
    views += [view(f"b{n}", f"b{n}", seq=n, owner="b") for n in range(6, 9)]
    await tell(mirror, tracker, *views)
    assert [mirror.position(one) for one in views] == [1, 3, 5, 7, 8, 2, 4, 6]
    await tell(mirror, tracker, view("a1", "a1", seq=1, owner="a", state=JobState.PROCESSING, started_at=1.0))
    assert mirror.position(views[5]) == 2
    assert mirror.has_queued("m")


async def test_a_job_that_was_cancelled_here_is_open_no_more_whatever_the_stream_tells_late(
    mirror: Mirror, tracker: FakeTracker
) -> None:
    await tell(mirror, tracker, view())
    cancelled = view(state=JobState.FAILED, error_code="cancelled")
    tracker.answers["job"] = cancelled
    mirror.ended(cancelled)
    assert await mirror.find("public", "job") == cancelled
    assert mirror.position(view("k2", "job2", seq=2)) == 1

    await tell(mirror, tracker, view())  # As it was before.
    assert await mirror.find("public", "job") == cancelled
    await tell(mirror, tracker, cancelled)
    assert await mirror.find("public", "job") == cancelled
    # Even if all is told anew, as it was a moment before.
    await tell(mirror, tracker, view(), reset=True)
    assert await mirror.find("public", "job") == cancelled
    assert tracker.asked == ["job"] * 4


async def test_a_job_that_was_cancelled_before_the_stream_told_of_it_does_not_come_back(
    mirror: Mirror, tracker: FakeTracker
) -> None:
    tracker.answers["job"] = cancelled = view(state=JobState.FAILED, error_code="cancelled")
    mirror.ended(cancelled)
    await tell(mirror, tracker, view())
    assert await mirror.find("public", "job") == cancelled
