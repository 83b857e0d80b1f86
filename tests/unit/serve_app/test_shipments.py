"""Shipments: several jobs in one call, of which each sees only its own events, and can be stopped alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from fakes import FINISHED, STARTED, until
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from deployments.mailbox import Batch
from deployments.render import RenderEvent, RenderFailed, RenderProgress, RenderRequest
from serve_app import shipments as module
from serve_app.shipments import Shipments, ShippedJob

CANCELLED = RenderFailed("cancelled", "The job was cancelled.")


class Call:
    """A call with several jobs: tells what the test puts into it."""

    def __init__(self, requests: tuple[RenderRequest, ...]) -> None:
        self.keys = [request.artifact_key for request in requests]
        self.cancels = 0
        self._told: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()

    def tell(self, *events: tuple[int, RenderEvent]) -> None:
        self._told.put_nowait(events)

    def end(self, error: Exception | None = None) -> None:
        self._told.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        while (batch := await self._told.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def cancel(self) -> None:
        self.cancels += 1
        self.end(RequestCancelledError("cancelled"))


class Single:
    """A call with one job."""

    def __init__(self, call: Call) -> None:
        self.call = call

    async def __aiter__(self) -> AsyncIterator[RenderEvent]:
        async for batch in self.call:
            for _, event in batch:
                yield event

    def cancel(self) -> None:
        self.call.cancel()


class Render:
    """The method for one job."""

    def __init__(self, handle: "Handle") -> None:
        self._handle = handle

    def remote(self, request: RenderRequest) -> Single:
        return Single(self._handle.remote((request,)))


class Handle:
    """A deployment handle that notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.broadcasts: list[tuple[str, tuple[str, ...]]] = []

    @property
    def render(self) -> Render:
        return Render(self)

    @property
    def render_together(self) -> "Handle":
        return self

    def remote(self, requests: tuple[RenderRequest, ...]) -> Call:
        self.calls.append(Call(requests))
        return self.calls[-1]

    def broadcast(self, method: str, keys: tuple[str, ...]) -> "Handle":
        self.broadcasts.append((method, keys))
        return self

    async def results_async(self, **_: Any) -> list[None]:
        return [None]


@pytest.fixture
def handle() -> Handle:
    return Handle()


def shipments(handle: Handle, *, devices: int = 1, together: int = 8) -> Shipments:
    return Shipments(cast(DeploymentHandle, handle), devices=lambda: devices, together=lambda: together)


REQUEST = RenderRequest("job", "k0", "x", 64, 64, 1, 1.0, 1, 60.0)


def send(to: Shipments, count: int) -> list[ShippedJob]:
    return [to.send(replace(REQUEST, job_id=f"j{n}", artifact_key=f"k{n}")) for n in range(count)]


async def rest(job: ShippedJob) -> list[RenderEvent]:
    async with asyncio.timeout(5):
        return [event async for event in job]


@pytest.mark.parametrize(
    ("jobs", "devices", "together", "sizes"),
    [
        (5, 1, 8, [5]),
        (9, 1, 4, [3, 3, 3]),
        (6, 4, 8, [2, 2, 1, 1]),
        (3, 8, 8, [1, 1, 1]),
        (40, 4, 4, [4] * 10),
    ],
)
async def test_jobs_of_one_moment_are_spread_over_as_few_calls_as_may_be(
    handle: Handle, jobs: int, devices: int, together: int, sizes: list[int]
) -> None:
    sent = shipments(handle, devices=devices, together=together)
    send(sent, jobs)
    await until(lambda: len(handle.calls) == len(sizes))
    assert [len(call.keys) for call in handle.calls] == sizes
    assert sorted(key for call in handle.calls for key in call.keys) == sorted(f"k{n}" for n in range(jobs))
    await sent.close()
    assert all(call.cancels for call in handle.calls)


async def test_each_job_sees_its_own_events_up_to_its_end(handle: Handle) -> None:
    one, two = send(shipments(handle), 2)
    await until(lambda: bool(handle.calls))
    progress = RenderProgress("denoising", 1, 2)
    handle.calls[0].tell((0, STARTED), (1, STARTED), (0, FINISHED))
    handle.calls[0].tell((1, progress))
    handle.calls[0].tell((1, CANCELLED))
    assert await rest(one) == [STARTED, FINISHED]
    assert await rest(two) == [STARTED, progress, CANCELLED]


async def test_a_lost_replica_ends_those_that_have_no_end(handle: Handle) -> None:
    one, two = send(shipments(handle), 2)
    await until(lambda: bool(handle.calls))
    handle.calls[0].tell((0, FINISHED))
    handle.calls[0].end(RayActorError())
    assert await rest(one) == [FINISHED]
    with pytest.raises(RayActorError):
        await rest(two)
    await until(lambda: handle.calls[0].cancels == 1)


async def test_jobs_that_a_replica_cannot_take_together_are_sent_singly_and_so_are_the_next_ones(
    handle: Handle,
) -> None:
    sent = shipments(handle)
    jobs = send(sent, 3)
    await until(lambda: len(handle.calls) == 1)
    jobs[2].cancel()
    handle.calls[0].end(RayServeException("Tried to call a method that does not exist."))
    await until(lambda: len(handle.calls) == 3)
    for call in handle.calls[1:]:
        call.tell((0, FINISHED))
        call.end()
    assert [await rest(job) for job in jobs[:2]] == [[FINISHED], [FINISHED]]
    with pytest.raises(RayServeException):
        await rest(jobs[2])
    send(sent, 4)
    await until(lambda: len(handle.calls) == 7)
    assert [len(call.keys) for call in handle.calls] == [3, 1, 1, 1, 1, 1, 1]
    await sent.close()


async def test_what_single_jobs_would_meet_as_well_is_told_to_all(handle: Handle) -> None:
    sent = shipments(handle)
    jobs = send(sent, 2)
    await until(lambda: bool(handle.calls))
    handle.calls[0].end(DeploymentUnavailableError("no replicas"))
    for job in jobs:
        with pytest.raises(DeploymentUnavailableError):
            await rest(job)
    send(sent, 2)
    await until(lambda: len(handle.calls) == 2)
    assert [len(call.keys) for call in handle.calls] == [2, 2]
    await sent.close()


async def test_a_call_that_cannot_even_be_cancelled_leaves_nobody_waiting(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Call) -> None:
        raise RuntimeError("the router is closed")

    monkeypatch.setattr(Call, "cancel", broken)
    jobs = send(shipments(handle), 2)
    await until(lambda: bool(handle.calls))
    jobs[0].cancel()
    jobs[1].cancel()
    handle.calls[0].end(RuntimeError("the router is closed"))
    for job in jobs:
        with pytest.raises(RuntimeError):
            await rest(job)


async def test_a_refusal_of_a_single_job_is_its_own(handle: Handle) -> None:
    (job,) = send(shipments(handle), 1)
    await until(lambda: bool(handle.calls))
    handle.calls[0].end(DeploymentUnavailableError("no replicas"))
    with pytest.raises(RayServeException):
        await rest(job)
    assert len(handle.calls) == 1


async def test_a_call_that_ends_too_early_ends_the_iteration(handle: Handle) -> None:
    (job,) = send(shipments(handle), 1)
    await until(lambda: bool(handle.calls))
    handle.calls[0].end()
    assert await rest(job) == []


async def test_one_job_is_stopped_and_the_others_go_on(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_AGAIN_S", 0.01)
    one, two, three = send(shipments(handle), 3)
    await until(lambda: bool(handle.calls))
    call = handle.calls[0]
    call.tell((0, FINISHED))
    await until(lambda: one.over)
    one.cancel()
    two.cancel()
    # The call may reach its replica after the news: it is told again.
    await until(lambda: len(handle.broadcasts) >= 3)
    assert set(handle.broadcasts) == {("cancel_together", ("k1",))}
    call.tell((1, CANCELLED))
    assert await rest(two) == [CANCELLED]
    told = len(handle.broadcasts)
    await asyncio.sleep(0.05)
    assert len(handle.broadcasts) <= told + 1
    assert call.cancels == 0
    call.tell((2, FINISHED))
    assert await rest(three) == [FINISHED]


async def test_the_call_is_cancelled_when_all_that_is_left_of_it_is_to_stop(handle: Handle) -> None:
    jobs = send(shipments(handle), 3)
    await until(lambda: bool(handle.calls))
    handle.calls[0].tell((0, FINISHED))
    await until(lambda: jobs[0].over)
    for job in jobs[1:]:
        job.cancel()
    for job in jobs[1:]:
        with pytest.raises(RequestCancelledError):
            await rest(job)
    assert handle.calls[0].cancels
    assert not handle.broadcasts


async def test_a_job_that_is_stopped_before_it_is_sent_is_not(handle: Handle) -> None:
    one, two = send(shipments(handle), 2)
    one.cancel()
    assert await rest(one) == [CANCELLED]
    await until(lambda: bool(handle.calls))
    assert handle.calls[0].keys == ["k1"]
    two.cancel()


@pytest.mark.parametrize("turns", range(4))
async def test_a_job_that_is_stopped_on_the_doorstep_is_not_sent_or_cancelled_at_once(
    handle: Handle, turns: int
) -> None:
    (job,) = send(shipments(handle), 1)
    for _ in range(turns):
        await asyncio.sleep(0)
    sent = len(handle.calls)
    job.cancel()
    try:
        assert await rest(job) == [CANCELLED]
    except RequestCancelledError:
        await until(lambda: all(call.cancels for call in handle.calls))
    assert len(handle.calls) == sent


async def test_jobs_that_are_all_stopped_before_their_call_begins_are_not_sent(handle: Handle) -> None:
    jobs = send(shipments(handle), 2)
    await asyncio.sleep(0)
    for job in jobs:
        job.cancel()
        assert await rest(job) == [CANCELLED]
    await asyncio.sleep(0.05)
    assert not handle.calls


async def test_jobs_whose_call_has_not_begun_are_told_of_the_end(handle: Handle) -> None:
    sent = shipments(handle)
    (job,) = send(sent, 1)
    await asyncio.sleep(0)
    await sent.close()
    with pytest.raises(RequestCancelledError):
        await rest(job)
    assert not handle.calls


async def test_a_broadcast_that_fails_is_made_again(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_AGAIN_S", 0.01)

    async def fails(**_: Any) -> list[None]:
        raise TimeoutError

    monkeypatch.setattr(handle, "results_async", fails)
    one, _ = send(shipments(handle), 2)
    await until(lambda: bool(handle.calls))
    one.cancel()
    await until(lambda: len(handle.broadcasts) >= 3)
    handle.calls[0].tell((0, CANCELLED))
    assert await rest(one) == [CANCELLED]
