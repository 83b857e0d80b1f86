"""The engine and a picture store that is slow, refuses, or hangs."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rendering_kit import WAIT_S, Job, submit
from steered_renderer import SteeredRenderer

from deployments.artifacts import ArtifactStore
from deployments.engine import Engine
from deployments.errors import EngineUnhealthy
from deployments.render import RenderProgress, RenderStarted


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set it, and pictures are stored; until then whoever publishes one waits."""
    disk = threading.Event()
    publish = ArtifactStore.publish

    def slow(self: ArtifactStore, key: str, *rest: object) -> object:
        assert disk.wait(WAIT_S)
        return publish(self, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ArtifactStore, "publish", slow)
    yield disk
    disk.set()


def _denoised(job: Job) -> None:
    job.until(lambda event: isinstance(event, RenderProgress) and event.step == event.steps)


def test_storing_a_picture_overlaps_the_next_job(
    steer: Callable[..., Engine], renderer: SteeredRenderer, disk: threading.Event
) -> None:
    engine = steer()
    first, second = submit(engine, job_id="first"), submit(engine, job_id="second")
    renderer.permit(5)
    second.until(lambda event: isinstance(event, RenderProgress) and event.step == 2)
    first.until_stage("storing")
    assert first.events.empty()
    disk.set()
    renderer.permit(1)
    first.finished()
    second.finished()


def test_a_store_that_cannot_be_written_fails_the_job_with_its_code(
    renderer: SteeredRenderer, steer: Callable[..., Engine], store: ArtifactStore
) -> None:
    Path(store.root).parent.mkdir(exist_ok=True)
    Path(store.root).write_text("a file where the folder should be")
    renderer.permit(3)
    assert submit(steer()).failed().error_code == "artifact_unwritable"


def _ended(engine: Engine, renderer: SteeredRenderer, disk: threading.Event) -> None:
    """Let what hangs go on, and wait for the engine's threads: one that is given up does not wait for them itself."""
    disk.set()
    renderer.permit(1000)
    for thread in (engine._device_thread, *engine._tail_threads):
        thread.join(WAIT_S)


def test_whoever_waits_behind_a_slow_store_is_blamed_for_nothing(
    steer: Callable[..., Engine], renderer: SteeredRenderer, disk: threading.Event
) -> None:
    engine = steer(step_timeout_s=2.0)
    renderer.permit(100)
    jobs = [submit(engine, artifact_key=f"{n}", timeout_s=3.0) for n in range(6)]
    jobs[0].until_stage("storing")
    _denoised(jobs[1])
    time.sleep(4.0)  # Longer than a step and than a whole job may take.
    disk.set()
    for job in jobs:
        job.finished()
    engine.check_health()


def test_a_store_that_hangs_takes_no_job_and_no_blame_with_it(
    steer: Callable[..., Engine], renderer: SteeredRenderer, disk: threading.Event
) -> None:
    engine = steer(store_timeout_s=2.0)
    renderer.permit(6)
    storing, behind, rendering, waiting = (submit(engine, artifact_key=key) for key in "abcd")
    for job in (storing, behind, rendering):
        assert job.failed().error_code == "artifact_unwritable"
    assert any(isinstance(event, RenderStarted) for event in rendering.seen)
    # It has not begun, so that another replica takes it without blame.
    assert isinstance(waiting.end(), EngineUnhealthy)
    assert not any(isinstance(event, RenderStarted) for event in waiting.seen)
    with pytest.raises(EngineUnhealthy, match=r"store did not answer for 2 seconds"):
        engine.check_health()

    _ended(engine, renderer, disk)
    # What comes too late is not told.
    assert storing.events.empty()


def test_a_job_that_waits_to_be_alone_is_released_from_a_store_that_hangs(
    steer: Callable[..., Engine], renderer: SteeredRenderer, disk: threading.Event
) -> None:
    engine = steer(store_timeout_s=2.0)
    renderer.permit(3)
    storing, alone = submit(engine, artifact_key="a"), submit(engine, artifact_key="b", alone=True)
    assert storing.failed().error_code == alone.failed().error_code == "artifact_unwritable"
    assert not any(isinstance(event, RenderStarted) for event in alone.seen)
    _ended(engine, renderer, disk)


def test_a_picture_that_waits_for_its_turn_is_told_to_be_stored(
    steer: Callable[..., Engine], renderer: SteeredRenderer, disk: threading.Event
) -> None:
    engine = steer()
    renderer.permit(6)
    first, behind = submit(engine, artifact_key="a"), submit(engine, artifact_key="b")
    behind.until_stage("storing")
    disk.set()
    assert set(first.finished().seconds) == set(behind.finished().seconds) == {"denoising", "storing"}
