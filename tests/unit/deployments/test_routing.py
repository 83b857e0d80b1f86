"""Every device gets its first job before any gets a second one."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from deployments import routing
from deployments.routing import MOST_ASKED, FreeFirstRouter

DEPLOYMENT = DeploymentID("model", "app")


@dataclass(eq=False)
class Replica:
    """What the router looks at. `answer`: its number of jobs, an error, or None if it never answers."""

    replica_id: ReplicaID
    max_ongoing_requests: int = 32
    answer: int | Exception | None = 0
    asked: int = 0
    takes_s: float = 0.0
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        del deadline_s
        self.asked += 1
        await asyncio.sleep(self.takes_s)
        if self.answer is None:
            await self.answering.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or 0


def some_replicas(count: int) -> list[Replica]:
    return [Replica(ReplicaID(str(n), DEPLOYMENT)) for n in range(count)]


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> list[Replica]:
    monkeypatch.setattr(routing, "ASK_FOR_S", 0.02)
    return some_replicas(8)


@pytest.fixture
def router(replicas: list[Replica]) -> FreeFirstRouter:
    router = FreeFirstRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router._replicas = {replica.replica_id: replica for replica in replicas}
    return router


@pytest.fixture
def known(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    """Every replica has told that it has nothing."""
    for replica in replicas:
        router.on_new_queue_len_info(replica.replica_id, 0)


def request(name: str) -> PendingRequest:
    return PendingRequest(args=[], kwargs={}, metadata=RequestMetadata(request_id=name, internal_request_id=name))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what the router knows has no event
            await asyncio.sleep(0.01)


async def choose(router: FreeFirstRouter, replicas: list[Replica]) -> ReplicaID:
    first, others = await router.choose_replicas(replicas)
    assert {one.replica_id for one in (*first, *others)} == {one.replica_id for one in replicas}
    return first[0].replica_id


async def test_jobs_that_are_placed_before_any_is_sent_go_to_different_replicas(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    chosen = Counter([await choose(router, replicas) for _ in range(16)])
    assert set(chosen.values()) == {2}


async def test_a_second_job_goes_to_the_replica_that_got_its_first_one_the_longest_ago(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    for _ in replicas:
        router.on_send_request(await choose(router, replicas))
    router.decrement_queue_len_cache(replicas[5].replica_id)  # Serve calls both
    router.on_request_completed(replicas[5].replica_id, "request")
    assert await choose(router, replicas) == replicas[5].replica_id
    router.on_send_request(replicas[5].replica_id)
    assert await choose(router, replicas) == replicas[0].replica_id


@pytest.mark.usefixtures("known")
async def test_what_other_ingress_replicas_have_sent_counts(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for replica in replicas[:-1]:
        router.on_new_queue_len_info(replica.replica_id, 3)
    assert [await choose(router, replicas) for _ in range(3)] == [replicas[-1].replica_id] * 3


async def test_what_a_replica_told_long_ago_does_not_hide_what_was_sent(replicas: list[Replica]) -> None:
    now = 0.0
    router = FreeFirstRouter(
        DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True, get_curr_time_s=lambda: now
    )
    router._replicas = {replica.replica_id: replica for replica in replicas}
    for replica in replicas[:-1]:
        router.on_send_request(replica.replica_id)
    now = 3600.0
    (best,), _ = await router.choose_replicas(replicas)
    assert best is replicas[-1]


async def test_replicas_that_are_gone_are_forgotten(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for _ in replicas:
        router.on_send_request(await choose(router, replicas))
    router._replicas = {replicas[0].replica_id: replicas[0]}
    await router.choose_replicas(replicas[:1])
    assert set(router._turns) == {replicas[0].replica_id}
    assert set(router._here) == {replicas[0].replica_id}
    assert await router.choose_replicas([]) == []


@pytest.mark.usefixtures("known")
async def test_a_burst_fills_up_the_idle_one_and_then_all(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for replica in replicas[:-1]:
        router.on_send_request(replica.replica_id)
    chosen = []
    for n in range(8):
        (best, *_), _ = await router.choose_replicas(replicas, request(str(n)))
        chosen.append(best.replica_id)
    assert chosen[0] == replicas[-1].replica_id
    assert set(chosen) == {one.replica_id for one in replicas}, "then each has two"


async def test_those_whose_queue_is_unknown_are_asked_and_the_one_without_jobs_is_taken(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    for replica in replicas[:-1]:
        replica.answer = 1
    assert await choose(router, replicas) == replicas[-1].replica_id
    assert {one.asked for one in replicas} == {1}


async def test_a_known_idle_replica_is_taken_without_asking(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    router.on_new_queue_len_info(replicas[5].replica_id, 0)
    (best,), _ = await router.choose_replicas(replicas, request("one"))
    assert best is replicas[5]
    assert sum(one.asked for one in replicas) == 0


async def test_many_jobs_at_once_ask_each_replica_once_and_use_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # On busy machines all answers were late: each job asked all replicas, and all went to the first that had answered.
    monkeypatch.setattr(routing, "ASK_FOR_S", 0.02)
    replicas = some_replicas(64)
    for replica in replicas:
        replica.answer = None
    router = FreeFirstRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router._replicas = {replica.replica_id: replica for replica in replicas}
    router.on_new_queue_len_info(replicas[0].replica_id, 0)
    chosen = await asyncio.gather(*(router.choose_replicas(replicas, request(str(n))) for n in range(128)))
    counts = Counter(best.replica_id for (best, *_), _ in chosen)
    assert len(counts) == 64
    assert max(counts.values()) <= 3
    assert max(one.asked for one in replicas) == 1


async def test_no_more_than_some_are_asked_at_once(router: FreeFirstRouter) -> None:
    replicas = some_replicas(MOST_ASKED + 4)
    router._replicas = {replica.replica_id: replica for replica in replicas}
    (best,), others = await router.choose_replicas(replicas, request("one"))
    assert sum(one.asked for one in replicas) == MOST_ASKED
    assert best.asked == 1
    # Serve would ask those of an unknown queue itself, all at once.
    assert len(others) == MOST_ASKED - 1


async def test_one_that_does_not_answer_gets_jobs_after_those_that_do(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    silent, *answering = replicas
    silent.answer = None
    chosen = [(await router.choose_replicas(replicas, request(str(n))))[0][0] for n in range(2 * len(answering))]
    assert silent not in chosen[: len(answering)]
    assert silent.asked == 1
    silent.answering.set()


async def test_one_that_has_died_is_not_chosen(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for replica in replicas[:-1]:
        replica.answer = ActorDiedError()
    (best,), others = await router.choose_replicas(replicas, request("one"))
    assert best is replicas[-1]
    assert others == []


async def test_no_replica_is_chosen_when_all_have_died(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.answer = ActorDiedError()
    assert await router.choose_replicas(replicas, request("one")) == []


async def test_jobs_that_come_while_replicas_are_asked_wait_for_the_answers(
    router: FreeFirstRouter, replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "ASK_FOR_S", 30.0)
    for replica in replicas:
        replica.takes_s = 0.02
    for replica in replicas[:4]:
        replica.answer = 1
    chosen = await asyncio.gather(*(router.choose_replicas(replicas, request(str(n))) for n in range(4)))
    assert {best.replica_id for (best, *_), _ in chosen} == {one.replica_id for one in replicas[4:]}
    assert {one.asked for one in replicas} == {1}


async def test_the_first_idle_one_that_answers_is_taken(
    router: FreeFirstRouter, replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "ASK_FOR_S", 30.0)
    for replica in replicas[:-1]:
        replica.answer = None
    (best,), _ = await asyncio.wait_for(router.choose_replicas(replicas, request("one")), 20)
    assert best is replicas[-1]


@pytest.mark.parametrize("error", [ActorUnavailableError("away", None), RuntimeError("Ray is being shut down")])
async def test_who_has_failed_gets_jobs_when_nobody_else_is_left_until_it_answers(
    router: FreeFirstRouter, replicas: list[Replica], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(routing, "ASK_AGAIN_S", 0.05)
    failed, *others = replicas
    failed.answer = error
    for replica in others:
        router.on_new_queue_len_info(replica.replica_id, 5)
    for n in range(20):
        (best,), _ = await router.choose_replicas(replicas, request(str(n)))
        router.on_send_request(best.replica_id)
        assert best is not failed
    # It is asked until it answers, and what it tells counts then.
    failed.answer = 0
    await until(lambda: router._is_known(failed.replica_id))
    (best,), _ = await router.choose_replicas(replicas, request("last"))
    assert best is failed


async def test_who_stays_silent_has_failed(
    router: FreeFirstRouter, replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "ANSWER_WITHIN_S", 0.05)
    replicas[0].answer = None
    for replica in replicas[1:]:
        router.on_new_queue_len_info(replica.replica_id, 5)
    await router.choose_replicas(replicas, request("one"))
    await until(lambda: bool(router._failed))
    # A job that it takes shows that it lives.
    router.on_new_queue_len_info(replicas[0].replica_id, 1)
    assert router._failed == set()


async def test_a_guess_is_no_knowledge(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.answer = None
    (best,), others = await router.choose_replicas(replicas, request("one"))
    assert others == []
    assert not router._is_known(best.replica_id)
    assert router.replica_queue_len_cache.get(best.replica_id) is not None, "or Serve would ask it"
    router.on_send_request(best.replica_id)
    router.on_new_queue_len_info(best.replica_id, 3)
    assert router._is_known(best.replica_id)


async def test_the_only_replica_is_not_asked(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    (best,), others = await router.choose_replicas(replicas[:1], request("one"))
    assert (best, others, best.asked) == (replicas[0], [], 0)


async def test_full_replicas_are_no_second_choice(router: FreeFirstRouter, replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.answer = 32
    (best,), others = await router.choose_replicas(replicas, request("one"))
    assert best in replicas
    assert others == []


async def test_serve_pauses_before_it_asks_full_replicas_again(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    asked = request("one")
    await router.choose_replicas(replicas, asked)
    assert asked.routing_context.should_backoff
