"""Turns: every owner gets one, whoever has more jobs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from callback.fair_queue import FairQueue
from callback.records import JobView, Submit
from callback.states import JobState
from tests.unit.callback.tracker_kit import StartDesk, new_job, rejected


def filled(*jobs: tuple[str, int]) -> FairQueue:
    queue = FairQueue()
    for owner, seq in jobs:
        queue.put(owner, seq, f"{owner}{seq}")
    return queue


def test_ten_thousand_jobs_of_one_owner_delay_anothers_by_one() -> None:
    queue = filled(*(("a", n) for n in range(10_000)), ("b", 10_000), ("b", 10_001))
    assert queue.take(4) == ["a0", "b10000", "a1", "b10001"]
    assert len(queue) == 9_998


def test_a_turn_is_remembered_from_one_claim_to_the_next() -> None:
    queue = filled(("a", 1), ("a", 2), ("b", 3), ("b", 4))
    assert [queue.take(1), queue.take(1), queue.take(1), queue.take(1)] == [["a1"], ["b3"], ["a2"], ["b4"]]


def test_a_job_that_comes_back_has_its_old_place_among_its_owners() -> None:
    queue = filled(("a", 1), ("a", 2), ("b", 3))
    (taken,) = queue.take(1)
    queue.put("a", 1, taken)
    assert queue.take(9) == ["b3", "a1", "a2"]


jobs_of_owners = st.lists(st.sampled_from("abc"), max_size=30)


@given(owners=jobs_of_owners, gone=st.sets(st.integers(0, 29)), limits=st.lists(st.integers(0, 4), max_size=30))
def test_no_job_is_lost_or_given_twice_and_an_owners_jobs_keep_their_order(
    owners: list[str], gone: set[int], limits: list[int]
) -> None:
    queue = filled(*((owner, n) for n, owner in enumerate(owners)))
    for n in gone & set(range(len(owners))):
        queue.discard(owners[n], n)
        queue.discard(owners[n], n)
    left = [f"{owner}{n}" for n, owner in enumerate(owners) if n not in gone]
    assert len(queue) == len(left)
    assert queue.oldest() == (left[0] if left else None)
    taken = [key for limit in limits for key in queue.take(limit)] + queue.take(100)
    assert sorted(taken) == sorted(left)
    for owner in "abc":
        assert [key for key in taken if key[0] == owner] == [key for key in left if key[0] == owner]
    # As long as two owners have jobs, neither has two turns while the other has none.
    for first, second in pairwise(taken):
        if first[0] == second[0]:
            assert {key[0] for key in taken[taken.index(second) :]} == {second[0]}


async def test_claims_give_each_owner_a_turn(start: StartDesk) -> None:
    desk = await start()
    for n in range(3):
        await desk.submit(f"a{n}", owner="a")
    await desk.submit("b0", owner="b")
    assert [claim.job_id for claim in await desk.claim(limit=4)] == ["a0", "b0", "a1", "a2"]


async def test_a_client_with_as_many_open_jobs_as_allowed_does_not_keep_others_out(start: StartDesk) -> None:
    desk = await start(max_open_jobs=3, max_open_jobs_per_client=1)
    first = new_job("a1")
    await desk.submit("b1", owner="b")
    await desk.do(Submit(first))
    assert rejected(await desk.do(Submit(new_job("a2")))) == "queue_full"
    again = await desk.do(Submit(first))
    assert isinstance(again, JobView)
    await desk.submit("c1", owner="c")
    cancelled = await desk.cancel("a1")
    assert isinstance(cancelled, JobView)
    assert cancelled.state is JobState.FAILED
    await desk.submit("a3")
