"""Questions for jobs travel together, and none is answered with what was true before it was put."""

import asyncio
import contextvars

import pytest

from callback.errors import StoreUnavailable, TrackerUnavailable
from callback.lookups import Identity, Lookups
from callback.records import JobView
from tests.unit.callback.test_board import open_job

VIEW = open_job().view


class Tracker:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[tuple[Identity, ...]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def find(self, identities: tuple[Identity, ...]) -> tuple[JobView | None, ...]:
        self.asked.append(identities)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return tuple(VIEW if job_id == "there" else None for _, job_id in identities)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_asked_while_others_are_under_way_travels_together() -> None:
    tracker = Tracker()
    lookups = Lookups(tracker.find)
    asking = []
    for job_id in ("first", "there", "nowhere", "there"):
        asking.append(asyncio.create_task(lookups.get("me", job_id, timeout_s=5)))
        await settle()
    assert tracker.asked == [(("me", "first"),)]
    tracker.go_on.set()
    assert await asyncio.gather(*asking) == [None, VIEW, None, VIEW]
    assert tracker.asked[1:] == [(("me", "there"), ("me", "nowhere"))]


async def test_a_question_is_put_in_no_requests_context() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    asked_in = []

    async def find(identities: tuple[Identity, ...]) -> tuple[JobView | None, ...]:
        asked_in.append(request.get())
        return tuple(None for _ in identities)

    lookups = Lookups(find)
    request.set("of a client that may go away")
    await lookups.get("me", "first", timeout_s=5)
    assert asked_in == ["none"]


async def test_a_question_is_not_answered_by_a_call_that_began_before_it() -> None:
    tracker = Tracker()
    lookups = Lookups(tracker.find)
    earlier = asyncio.create_task(lookups.get("me", "there", timeout_s=5))
    await settle()
    later = asyncio.create_task(lookups.get("me", "there", timeout_s=5))
    await settle()
    tracker.go_on.set()
    await asyncio.gather(earlier, later)
    assert len(tracker.asked) == 2


async def test_whoever_goes_away_takes_nobody_elses_answer_along() -> None:
    tracker = Tracker()
    lookups = Lookups(tracker.find)
    earlier = asyncio.create_task(lookups.get("me", "first", timeout_s=5))
    await settle()
    leaving, staying = (asyncio.create_task(lookups.get("me", "there", timeout_s=5)) for _ in range(2))
    await settle()
    leaving.cancel()
    tracker.go_on.set()
    assert await staying == VIEW
    await earlier


async def test_an_error_reaches_all_who_asked_and_the_next_question_is_put_anew() -> None:
    tracker = Tracker()
    tracker.error = StoreUnavailable("The disk is full.")
    tracker.go_on.set()
    lookups = Lookups(tracker.find)
    answers = await asyncio.gather(*(lookups.get("me", "there", timeout_s=5) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    tracker.error = None
    assert await lookups.get("me", "there", timeout_s=5) == VIEW


async def test_no_answer_in_time_and_a_closed_connection_are_said_to_be_so() -> None:
    lookups = Lookups(Tracker().find)
    with pytest.raises(TrackerUnavailable):
        await lookups.get("me", "there", timeout_s=0.02)
    waiting = [asyncio.create_task(lookups.get("me", str(n), timeout_s=5)) for n in range(4)]
    await settle()
    await lookups.close()
    assert all(isinstance(one, TrackerUnavailable) for one in await asyncio.gather(*waiting, return_exceptions=True))


async def test_a_question_that_is_put_just_when_the_others_are_answered_is_put() -> None:
    tracker = Tracker()
    lookups = Lookups(tracker.find)

    async def ask_in_the_same_step() -> JobView | None:
        await tracker.go_on.wait()  # It wakes up after the call that is under way, before its task is gone.
        return await lookups.get("me", "there", timeout_s=1)

    earlier = asyncio.create_task(lookups.get("me", "first", timeout_s=5))
    await settle()
    assert len(tracker.asked) == 1
    later = asyncio.create_task(ask_in_the_same_step())
    await settle()
    tracker.go_on.set()
    assert await later == VIEW
    await earlier
