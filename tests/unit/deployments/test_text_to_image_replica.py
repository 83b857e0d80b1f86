"""The deployment class in this process: what it does with events, cancellation and a lost device."""

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from rendering_kit import make_request

from deployments import mailbox, text_to_image
from deployments.errors import EngineUnhealthy, ModelUnusable
from deployments.mailbox import Batch
from deployments.models import ModelSettings, SimulatedOptions
from deployments.render import RenderEvent, RenderFailed, RenderFinished, RenderProgress, RenderStarted
from deployments.text_to_image import TextToImage, actor_resources, deployment_for

Replica = Callable[..., TextToImage]


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replicas: list[TextToImage] = []

    def create(**options: object) -> TextToImage:
        simulated = SimulatedOptions.model_validate({"step_seconds": 0.01, **options})
        settings = ModelSettings(engine="simulated", simulated=simulated, step_timeout_s=0.5)
        replicas.append(TextToImage(settings, str(tmp_path / "artifacts")))
        return replicas[-1]

    yield create
    for each in replicas:
        each._engine.close()
    gc.unfreeze()


def test_the_collector_is_back_after_a_load_and_leaves_alone_what_was_made_in_it(replica: Replica) -> None:
    before = gc.get_freeze_count()
    replica()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_the_collector_is_back_after_a_load_that_failed(tmp_path: Path) -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ModelUnusable):
        TextToImage(ModelSettings(source=str(tmp_path)), str(tmp_path / "artifacts"))
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


async def collect(replica: TextToImage, **changes: object) -> list[RenderEvent]:
    return [event async for event in replica.render(make_request(**changes))]


async def test_a_job_streams_start_some_progress_and_the_end(replica: Replica) -> None:
    events = await collect(replica())
    assert isinstance(events[0], RenderStarted)
    assert isinstance(events[-1], RenderFinished)
    assert all(isinstance(event, RenderProgress) for event in events[1:-1])


async def test_progress_is_thinned_out_and_never_delays_the_end(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "PROGRESS_INTERVAL_S", 3600)
    events = await asyncio.wait_for(collect(replica(step_seconds=0.001), num_inference_steps=50), 60)
    assert len(events) <= 3


async def test_progress_that_is_delivered_is_the_newest(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "PROGRESS_INTERVAL_S", 0.1)
    events = await collect(replica(step_seconds=0.02), num_inference_steps=50)
    steps = [event.step for event in events if isinstance(event, RenderProgress)]
    assert steps == sorted(steps)
    assert 3 <= len(steps) < 25


async def test_a_cancelled_call_stops_the_job(replica: Replica) -> None:
    model = replica(step_seconds=0.05)
    running = asyncio.Event()

    async def consume() -> None:
        async with contextlib.aclosing(model.render(make_request(num_inference_steps=100_000))) as events:
            async for _ in events:
                running.set()

    task = asyncio.create_task(consume())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance((await asyncio.wait_for(collect(model), 60))[-1], RenderFinished)


async def test_a_dropped_stream_stops_the_job(replica: Replica) -> None:
    model = replica(step_seconds=0.05)
    stream = model.render(make_request(num_inference_steps=100_000))
    await anext(stream)
    await stream.aclose()
    assert isinstance((await asyncio.wait_for(collect(model), 60))[-1], RenderFinished)


async def test_a_lost_device_is_raised_and_ends_the_process(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    exited = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(text_to_image, "_EXIT_GRACE_S", 0.0)
    monkeypatch.setattr(text_to_image.os, "_exit", lambda _: loop.call_soon_threadsafe(exited.set))
    model = replica(hang_on="[hang]")
    model.check_health()
    with pytest.raises(EngineUnhealthy, match="no progress"):
        await collect(model, prompt="[hang]")
    with pytest.raises(EngineUnhealthy):
        model.check_health()
    await asyncio.wait_for(exited.wait(), 60)


async def test_concurrent_jobs_get_their_own_events(replica: Replica) -> None:
    model = replica()
    keys = [f"ab/j{n}/1.png" for n in range(5)]
    ends = [events[-1] for events in await asyncio.gather(*(collect(model, artifact_key=key) for key in keys))]
    assert [end.artifact.key for end in ends if isinstance(end, RenderFinished)] == keys


@pytest.mark.parametrize(
    ("settings", "device", "resources"),
    [
        (ModelSettings(source="m", threads=2), "cpu", {"num_cpus": 2}),
        (ModelSettings(source="m"), "cuda", {"num_cpus": 1, "num_gpus": 1}),
        (ModelSettings(engine="noop"), "cuda", {"num_cpus": 0}),
        (ModelSettings(engine="simulated"), "cpu", {"num_cpus": 0}),
    ],
)
def test_a_replica_reserves_what_its_engine_uses(
    settings: ModelSettings, device: str, resources: dict[str, float]
) -> None:
    assert actor_resources(settings, device) == resources


def test_each_model_is_a_deployment_of_its_own() -> None:
    assert deployment_for(ModelSettings(name="a", engine="noop")).name == "TextToImage-a"
    assert deployment_for(ModelSettings(name="a", engine="noop"), name="Other").name == "Other"


async def test_a_picture_that_is_there_before_its_start_is_told_comes_alone_and_says_when_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "QUICK_S", 3600)
    replica = TextToImage(ModelSettings(engine="noop"), str(tmp_path))
    try:
        told = await asyncio.wait_for(collect(replica, width=64, height=64), 60)
        asked = {"width": 64, "height": 64, "start_may_be_left_out": True}
        events = await asyncio.wait_for(collect(replica, **asked), 60)
    finally:
        replica._engine.close()
    # How much progress comes between depends on how busy the machine is.
    kinds = [type(event) for event in told if not isinstance(event, RenderProgress)]
    assert kinds == [RenderStarted, RenderFinished], "an earlier ingress waits for it"
    (finished,) = events
    assert isinstance(finished, RenderFinished)
    assert finished.since_start_s is not None
    assert finished.seconds["storing"] <= finished.since_start_s < 60


class Together(NamedTuple):
    """What a call with several jobs told."""

    batches: list[Batch]

    def of(self, number: int) -> list[RenderEvent]:
        return [event for batch in self.batches for one, event in batch if one == number]


async def collect_together(replica: TextToImage, *changes: dict[str, object]) -> Together:
    requests = tuple(make_request(artifact_key=f"ab/j{n}/1.png", **change) for n, change in enumerate(changes))
    return Together([batch async for batch in replica.render_together(requests)])


async def test_quick_jobs_of_one_call_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "QUICK_S", 3600)
    replica = TextToImage(ModelSettings(engine="noop"), str(tmp_path))
    try:
        sizes = [{"width": 64, "height": 64 + 8 * n} for n in range(5)]
        told = await asyncio.wait_for(collect_together(replica, *sizes), 60)
    finally:
        replica._engine.close()
    (batch,) = told.batches
    finished = [event for _, event in sorted(batch, key=lambda one: one[0])]
    assert [(e.artifact.key, e.artifact.height) for e in finished if isinstance(e, RenderFinished)] == [
        (f"ab/j{n}/1.png", 64 + 8 * n) for n in range(5)
    ]


async def test_one_job_of_a_call_is_stopped_alone(replica: Replica) -> None:
    model = replica(step_seconds=0.02)
    changes = [{"num_inference_steps": steps} for steps in (2, 100_000, 100_000, 2)]
    call = asyncio.create_task(collect_together(model, *changes))
    try:
        # The call begins at the first pause.
        await asyncio.sleep(0)
        assert len(model._together) == len(changes)
        # One is being rendered soon, one waits; a key of another replica's is nobody here.
        await model.cancel_together(("ab/j1/1.png", "ab/j2/1.png", "ab/j9/1.png"))
        told = await asyncio.wait_for(call, 60)
    finally:
        call.cancel()
    assert isinstance(told.of(0)[-1], RenderFinished)
    assert [told.of(n)[-1] for n in (1, 2)] == [RenderFailed("cancelled", "The job was cancelled.")] * 2
    assert isinstance(told.of(3)[-1], RenderFinished)
    assert not model._together


async def test_a_cancelled_call_stops_all_its_jobs(replica: Replica) -> None:
    model = replica(step_seconds=0.05)
    requests = tuple(make_request(artifact_key=f"ab/j{n}/1.png", num_inference_steps=100_000) for n in range(3))
    stream = model.render_together(requests)
    await anext(stream)
    await stream.aclose()
    assert not model._together
    assert isinstance((await asyncio.wait_for(collect(model), 60))[-1], RenderFinished)


async def test_a_call_is_taken_whole_however_short_the_engine_s_queue_is(tmp_path: Path) -> None:
    settings = ModelSettings(engine="simulated", simulated=SimulatedOptions(step_seconds=0.01), queue_size=1)
    model = TextToImage(settings, str(tmp_path))
    try:
        told = await asyncio.wait_for(collect_together(model, *[{"num_inference_steps": 1}] * 6), 60)
    finally:
        model._engine.close()
    assert all(isinstance(told.of(n)[-1], RenderFinished) for n in range(6))


async def test_a_device_lost_with_one_job_ends_the_call_after_what_was_told(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_to_image, "_EXIT_GRACE_S", 3600)
    model = replica(hang_on="[hang]")
    told: list[Batch] = []
    requests = [make_request(artifact_key=f"ab/j{n}/1.png", prompt=p) for n, p in enumerate(["one", "[hang]", "three"])]

    async def follow() -> None:
        async for batch in model.render_together(tuple(requests)):
            told.append(batch)  # noqa: PERF401 - what comes before the error counts

    with pytest.raises(EngineUnhealthy, match="no progress"):
        await follow()
    assert model._exit_timer is not None
    model._exit_timer.cancel()
    assert isinstance(Together(told).of(0)[-1], RenderFinished)
    assert not [event for event in Together(told).of(2) if isinstance(event, RenderFinished)]
