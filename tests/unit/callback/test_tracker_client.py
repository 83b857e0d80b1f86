"""How a client finds, waits for and replaces the tracker. Ray is left out: handles are the test's own."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError

from callback import client as client_module
from callback import connection as connection_module
from callback.client import TrackerClient
from callback.config import TrackerConfig, code_fingerprint, code_version
from callback.errors import JobIdInUse, JobNotFound, StoreUnavailable, TrackerUnavailable
from callback.records import PROTOCOL_VERSION, JobView, Rejected, Submit, TrackerIdentity
from tests.unit.callback.tracker_kit import BOUND_S, UNROUTED, Desk, new_job

Behaviour = Callable[..., Awaitable[Any]]


def identity_of(config: TrackerConfig) -> TrackerIdentity:
    """Return what a tracker of this code and configuration says of itself."""
    return TrackerIdentity(
        PROTOCOL_VERSION, code_version(), code_fingerprint(), config.fingerprint("pictures"), epoch=1, pid=1
    )


class Pictures:
    """No pictures, only their place."""

    identity = "pictures"


class Handle:
    """A tracker as the client sees it: every method answers as told."""

    def __init__(self, name: str, answer: Behaviour) -> None:
        self.name = name
        self._answer = answer

    def __getattr__(self, method: str) -> Any:
        answer = self._answer

        class Method:
            def remote(self, *args: Any) -> Awaitable[Any]:
                return answer(method, *args)

        return Method()


class Cluster:
    """The trackers under the name, one after the other: a killed one makes room for the next."""

    def __init__(self, *answers: Behaviour) -> None:
        self.handles = [Handle(f"tracker-{n}", answer) for n, answer in enumerate(answers)]
        self.killed: list[str] = []
        self.killed_one = asyncio.Event()
        self.follow_the_dead = False
        self._found = 0
        self._current = 0

    def find(self) -> Handle:
        """Return the one under the name; with `follow_the_dead` every look-up but the first finds the next."""
        self._found += 1
        if self.follow_the_dead and self._found == 2:
            self._current += 1
        return self.handles[self._current]

    def kill(self, handle: Handle, *, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(handle.name)
        self.killed_one.set()
        self._current = min(self._current + 1, len(self.handles) - 1)


async def silent(*_: Any) -> Any:
    await asyncio.Event().wait()


def late(answer: Any, after_s: float) -> Behaviour:
    """Answer nothing until so many seconds after the first call."""
    first: list[float] = []

    async def behave(*_: Any) -> Any:
        first.append(time.monotonic())
        await asyncio.sleep(max(0.0, first[0] + after_s - time.monotonic()))
        return answer

    return behave


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., TrackerClient]]:
    monkeypatch.setattr(connection_module, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(connection_module, "RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(client_module, "RETRY_PAUSE_S", 0.001)
    clients: list[TrackerClient] = []

    def connect_to(cluster: Cluster) -> TrackerClient:
        client = TrackerClient(TrackerConfig("sqlite:///unused"), Pictures(), takeover_after_s=0.1)  # type: ignore[arg-type]
        client._connection._patient_until = 0.0  # the tracker has been there for long
        monkeypatch.setattr(client._connection, "_find_or_create", cluster.find)
        monkeypatch.setattr(connection_module.ray, "kill", cluster.kill)
        client._spawn(client._pump())
        clients.append(client)
        return client

    yield connect_to
    for client in clients:
        await client.close()


async def test_a_silent_tracker_is_replaced(connect: Callable[..., TrackerClient]) -> None:
    cluster = Cluster(silent, late((None,), 0.0))

    assert await connect(cluster).get("anyone", "job-1", timeout_s=BOUND_S) is None
    assert cluster.killed == ["tracker-0"]


async def test_a_successor_is_not_replaced_while_it_starts(connect: Callable[..., TrackerClient]) -> None:
    cluster = Cluster(silent, late((None,), 0.5))

    await connect(cluster).get("anyone", "job-1", timeout_s=BOUND_S)

    assert cluster.killed == ["tracker-0"]


async def test_a_tracker_that_does_not_answer_is_reported_within_the_bound(
    connect: Callable[..., TrackerClient],
) -> None:
    client = connect(Cluster(silent))

    began = time.monotonic()
    with pytest.raises(TrackerUnavailable, match="does not answer"):
        await client.get("anyone", "job-1", timeout_s=0.2)

    assert time.monotonic() - began < 5


async def test_a_reader_waits_for_the_successor_of_a_tracker_that_is_being_replaced(
    connect: Callable[..., TrackerClient],
) -> None:
    calls = 0

    async def retiring(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RayTaskError("find", "", TrackerUnavailable("This tracker is being replaced."))
        return (None,)

    assert await connect(Cluster(retiring)).get("anyone", "job-1") is None
    assert calls == 3


async def test_a_call_that_ray_cancels_with_somebodys_request_is_made_again(
    connect: Callable[..., TrackerClient],
) -> None:
    calls = 0

    async def cancelled_once(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise TaskCancelledError
        return (None,)

    cluster = Cluster(cancelled_once)
    assert await connect(cluster).get("anyone", "job-1") is None
    assert (calls, cluster.killed) == (2, [])


async def test_an_error_of_the_tracker_reaches_the_reader(connect: Callable[..., TrackerClient]) -> None:
    async def broken(*_: Any) -> Any:
        raise RayTaskError("find", "", StoreUnavailable("The disk is full."))

    with pytest.raises(StoreUnavailable, match="full"):
        await connect(Cluster(broken)).get("anyone", "job-1")


async def test_a_command_whose_answer_was_lost_is_sent_again_and_answers_the_same(
    connect: Callable[..., TrackerClient], desk: Desk
) -> None:
    attempts = 0

    async def losing_answers(_method: str, version: int, commands: Any) -> Any:
        nonlocal attempts
        attempts += 1
        answers = await desk.tracker.execute(version, commands)
        if attempts < 3:
            raise ActorDiedError
        return answers

    view = await connect(Cluster(losing_answers)).submit(Submit(new_job()), timeout_s=BOUND_S)

    assert isinstance(view, JobView)
    assert await desk.view() == view
    assert attempts == 3


async def test_a_cancel_that_is_sent_again_names_the_job_that_it_found_first(
    connect: Callable[..., TrackerClient], desk: Desk
) -> None:
    sent = []

    async def reusing_the_id(method: str, *args: Any) -> Any:
        if method == "find":
            return await desk.tracker.find(*args)
        sent.append(args[1])
        answers = await desk.tracker.execute(*args)
        if len(sent) == 1:
            await desk.submit()
            raise ActorDiedError
        return answers

    first = await desk.submit()
    view = await connect(Cluster(reusing_the_id)).cancel("anyone", "job-1", timeout_s=BOUND_S)

    assert len(sent) == 2
    assert (view.key, view.error_code) == (first.key, "cancelled")
    assert (await desk.claim_one()).key != first.key


async def test_a_redelivery_that_is_sent_again_names_the_job_that_it_found_first(
    connect: Callable[..., TrackerClient], desk: Desk
) -> None:
    sent = []

    async def reusing_the_id(method: str, *args: Any) -> Any:
        if method == "find":
            return await desk.tracker.find(*args)
        sent.append(args[1][0])
        if len(sent) == 1:
            raise ActorDiedError
        return await desk.tracker.execute(*args)

    first = await desk.submit(callback_url=UNROUTED)
    await desk.fail(await desk.claim_one())
    await desk.until(lambda view: view.delivery is not None and view.settled(desk.clock.now()))
    await connect(Cluster(reusing_the_id)).redeliver("anyone", "job-1", "request", timeout_s=BOUND_S)

    assert [(command.key, command.request_id) for command in sent] == [(first.key, "request")] * 2


async def test_a_tracker_of_older_code_that_follows_one_which_died_is_replaced(
    connect: Callable[..., TrackerClient],
) -> None:
    died = False

    async def dying(method: str, *_: Any) -> Any:
        nonlocal died
        if method == "find":
            died = True
        if died:
            raise ActorDiedError
        return identity

    def running(identity: TrackerIdentity) -> Behaviour:
        async def behave(method: str, *_: Any) -> Any:
            return identity if method == "identity" else (None,)

        return behave

    identity = identity_of(TrackerConfig("sqlite:///unused"))
    older = replace(identity, code_version=("0.0.1", 0.0), code_fingerprint="older")
    cluster = Cluster(dying, running(older), running(identity))
    cluster.follow_the_dead = True
    client = connect(cluster)
    await client.start()

    await client.get("anyone", "job-1", timeout_s=BOUND_S)

    async with asyncio.timeout(BOUND_S):
        await cluster.killed_one.wait()
    assert cluster.killed == ["tracker-1"]


async def test_the_watch_over_successors_outlives_whatever_is_raised(
    connect: Callable[..., TrackerClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "WATCH_PAUSE_S", 0.001)
    client = connect(Cluster(silent))
    looked: list[int] = []
    done = asyncio.Event()

    async def look() -> None:
        looked.append(len(looked))
        if len(looked) == 1:
            raise RuntimeError("Ray raised what nobody expected")
        done.set()

    monkeypatch.setattr(client._connection, "take_over_if_older", look)
    client._spawn(client._connection.watch_over_successors())
    client._connection._lost.set()

    await asyncio.wait_for(done.wait(), BOUND_S)


@pytest.mark.parametrize(
    ("found", "replaced"),
    [
        ({}, False),
        ({"code_version": ("0.0.1", 0.0), "code_fingerprint": "other"}, True),
        ({"code_version": ("999.0", 0.0), "code_fingerprint": "other"}, False),
        ({"code_version": ("999.0", 0.0)}, False),
        ({"config_fingerprint": "other", "configured_at": 0.0}, True),
        ({"config_fingerprint": "other", "configured_at": 9e9}, False),
        ({"code_fingerprint": "other", "configured_at": 9e9}, False),
    ],
)
async def test_newer_code_and_the_later_configuration_count(
    connect: Callable[..., TrackerClient], found: dict[str, Any], replaced: bool
) -> None:
    config = TrackerConfig("sqlite:///unused")
    client = connect(Cluster(silent))

    assert client._connection._supersedes(replace(identity_of(config), **found)) is replaced


async def test_a_cancel_of_an_unknown_job_is_refused(connect: Callable[..., TrackerClient]) -> None:
    with pytest.raises(JobNotFound):
        await connect(Cluster(late((None,), 0.0))).cancel("anyone", "job-1")


async def test_refusals_come_as_errors_of_their_kind(connect: Callable[..., TrackerClient], desk: Desk) -> None:
    async def tracker(_method: str, version: int, commands: Any) -> Any:
        return await desk.tracker.execute(version, commands)

    client = connect(Cluster(tracker))
    await client.submit(Submit(new_job()))

    with pytest.raises(JobIdInUse):
        await client.submit(Submit(new_job(fingerprint="other")))


async def test_one_refused_command_leaves_the_others_of_its_batch_alone(
    connect: Callable[..., TrackerClient], desk: Desk
) -> None:
    async def tracker(_method: str, version: int, commands: Any) -> Any:
        return await desk.tracker.execute(version, commands)

    client = connect(Cluster(tracker))
    submits = [client.submit(Submit(new_job("same", fingerprint=f"{n}"))) for n in range(5)]

    outcomes = await asyncio.gather(*submits, return_exceptions=True)

    assert sum(isinstance(outcome, JobView) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, JobIdInUse) for outcome in outcomes) == 4


async def test_a_failing_store_is_told_at_once_and_not_retried(connect: Callable[..., TrackerClient]) -> None:
    calls = 0

    async def full(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        return (Rejected("store_unavailable", "The disk is full.", retryable=True),)

    with pytest.raises(StoreUnavailable):
        await connect(Cluster(full)).submit(Submit(new_job()))
    assert calls == 1


async def test_the_first_command_is_sent_at_once_and_those_that_follow_it_closely_together(
    connect: Callable[..., TrackerClient], desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "GATHER_S", 0.3)
    batches: list[int] = []

    async def tracker(_method: str, version: int, commands: Any) -> Any:
        batches.append(len(commands))
        return await desk.tracker.execute(version, commands)

    client = connect(Cluster(tracker))
    began = time.monotonic()
    await client.submit(Submit(new_job("first")))
    assert time.monotonic() - began < 0.3
    await asyncio.gather(*(client.submit(Submit(new_job(f"job-{n}"))) for n in range(5)))
    assert batches == [1, 5]


async def test_a_client_whose_sending_has_ended_by_a_bug_says_so(
    connect: Callable[..., TrackerClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: TrackerClient) -> None:
        raise RuntimeError("a bug")

    client = connect(Cluster(late(identity_of(TrackerConfig("sqlite:///unused")), 0.0)))
    assert not client.has_ended
    monkeypatch.setattr(TrackerClient, "_pump", broken)
    await client.start()
    await asyncio.sleep(0.01)
    assert client.has_ended
