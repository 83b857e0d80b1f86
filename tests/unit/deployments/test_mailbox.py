"""What reaches the reader of a mailbox, in how many messages, and whom it wakes."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from deployments import mailbox
from deployments.errors import EngineUnhealthy
from deployments.mailbox import Batch, Mailbox
from deployments.render import ArtifactRef, RenderFailed, RenderFinished, RenderProgress, RenderStarted

STARTED = RenderStarted("replica", "cpu")
FAILED = RenderFailed("render_error", "It broke.")
FINISHED = RenderFinished(ArtifactRef("k", "0" * 64, 1, 64, 64), 1, "exact")


def box(**options: int) -> Mailbox:
    return Mailbox(asyncio.get_running_loop(), **options)


async def read(mail: Mailbox) -> list[Batch]:
    async with asyncio.timeout(60):
        return [batch async for batch in mail]


async def test_progress_that_comes_with_the_start_waits_for_what_makes_it_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "PROGRESS_INTERVAL_S", 3600)
    mail = box()
    for event in (STARTED, RenderProgress("denoising", 1, 4)):
        mail.put_from_thread(0, event)
    batches = aiter(mail)
    assert await anext(batches) == ((0, STARTED),)
    mail.put_from_thread(0, FAILED)
    assert await asyncio.wait_for(anext(batches), 60) == ((0, FAILED),)


async def test_steps_wake_nobody_but_the_first_one_after_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "PROGRESS_INTERVAL_S", 0)
    woken = 0

    class Loop:
        def call_soon_threadsafe(self, notice: Callable[..., None], *arguments: bool) -> None:
            nonlocal woken
            woken += 1
            notice(*arguments)

    mail = Mailbox(cast(asyncio.AbstractEventLoop, Loop()))
    mail.put_from_thread(0, STARTED)
    batches = aiter(mail)
    assert await anext(batches) == ((0, STARTED),)
    for step in range(100):
        mail.put_from_thread(0, RenderProgress("denoising", step, 100))
    assert await anext(batches) == ((0, RenderProgress("denoising", 99, 100)),)
    assert woken == 2


async def test_a_start_is_told_before_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "QUICK_S", 3600)
    mail = box(quick=True)
    for event in (STARTED, FAILED):
        mail.put_from_thread(0, event)
    assert await read(mail) == [((0, STARTED), (0, FAILED))]


async def test_a_start_whose_end_takes_longer_is_told() -> None:
    mail = box(quick=True)
    mail.put_from_thread(0, STARTED)
    assert await asyncio.wait_for(anext(aiter(mail)), 60) == ((0, STARTED),)


async def test_ends_that_come_soon_after_each_other_are_told_together_without_their_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "QUICK_S", 3600)
    mail = box(jobs=3, quick=True)
    reader = asyncio.create_task(read(mail))
    for number in range(3):
        await asyncio.sleep(0)
        mail.put_from_thread(number, STARTED)
        mail.put_from_thread(number, FINISHED)
    (batch,) = await reader
    assert [number for number, _ in batch] == [0, 1, 2]
    ends = [event for _, event in batch]
    assert all(isinstance(end, RenderFinished) and end.since_start_s is not None for end in ends)


async def test_a_picture_that_waited_to_be_told_began_so_much_earlier() -> None:
    mail = box(quick=True)
    mail.put_from_thread(0, STARTED)
    mail.put_from_thread(0, FINISHED)
    await asyncio.sleep(0.1)
    ((batch,),) = [batch async for batch in mail]
    assert isinstance(batch[1], RenderFinished)
    assert batch[1].since_start_s is not None
    assert batch[1].since_start_s >= 0.1


async def test_an_end_does_not_wait_for_a_job_that_takes_long() -> None:
    mail = box(jobs=2, quick=True)
    for number, event in ((0, STARTED), (0, FINISHED), (1, STARTED)):
        mail.put_from_thread(number, event)
    batches = aiter(mail)
    first = await asyncio.wait_for(anext(batches), 60)
    assert [(number, type(event)) for number, event in first] == [(0, RenderFinished), (1, RenderStarted)]
    mail.put_from_thread(1, FAILED)
    assert await asyncio.wait_for(anext(batches), 60) == ((1, FAILED),)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(batches), 60)


async def test_what_ended_before_the_device_was_lost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "QUICK_S", 3600)
    mail = box(jobs=3, quick=True)
    mail.put_from_thread(0, FINISHED)
    for number in (1, 2):
        mail.put_from_thread(number, EngineUnhealthy("The device is lost."))
    batches = aiter(mail)
    assert await asyncio.wait_for(anext(batches), 60) == ((0, FINISHED),)
    with pytest.raises(EngineUnhealthy, match="device is lost"):
        await asyncio.wait_for(anext(batches), 60)


@pytest.mark.parametrize("quick", [False, True])
async def test_no_event_is_lost_or_out_of_order_when_threads_race_with_the_reader(quick: bool) -> None:
    jobs, steps = 8, 200
    mail = box(jobs=jobs, quick=quick)

    def tell(number: int) -> None:
        mail.put_from_thread(number, STARTED)
        for step in range(steps):
            mail.put_from_thread(number, RenderProgress("denoising", step, steps))
        mail.put_from_thread(number, FAILED)

    threads = [asyncio.to_thread(tell, number) for number in range(jobs)]
    batches, *_ = await asyncio.gather(read(mail), *threads)
    for number in range(jobs):
        told = [event for batch in batches for one, event in batch if one == number]
        assert told[0] == STARTED
        assert told[-1] == FAILED
        done = [event.step for event in told if isinstance(event, RenderProgress)]
        assert done == sorted(set(done))
