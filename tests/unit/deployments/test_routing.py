"""Every device gets its first job before any gets a second one."""

from collections import Counter
from dataclasses import dataclass

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from deployments.routing import FreeFirstRouter

DEPLOYMENT = DeploymentID("model", "app")


@dataclass(frozen=True)
class Replica:
    """What the router looks at."""

    replica_id: ReplicaID
    max_ongoing_requests: int = 32


@pytest.fixture
def replicas() -> list[Replica]:
    return [Replica(ReplicaID(str(n), DEPLOYMENT)) for n in range(8)]


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
    assert await choose(router, replicas) == replicas[-1].replica_id


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


async def test_those_whose_queue_is_unknown_are_asked_together(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    first, others = await router.choose_replicas(replicas, request("one"))
    assert first == replicas
    assert others == []


async def test_serve_pauses_before_it_asks_full_replicas_again(
    router: FreeFirstRouter, replicas: list[Replica]
) -> None:
    asked = request("one")
    await router.choose_replicas(replicas, asked)
    assert asked.routing_context.should_backoff
