"""The engine with a renderer that the test steers step by step."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from rendering_kit import WAIT_S, Job, make_request, submit
from steered_renderer import SteeredRenderer

from deployments.artifacts import ArtifactStore
from deployments.engine import NEWS_S, Engine, _Waiting
from deployments.errors import DeviceOutOfMemory, EngineBusy, EngineUnhealthy, ModelUnusable, RenderBroken
from deployments.job import RenderJob
from deployments.pictures import PixelPicture
from deployments.png import encode_png
from deployments.render import RenderFailed, RenderProgress, RenderStarted


def test_a_job_reports_start_steps_and_a_picture_that_is_stored(
    steer: Callable[..., Engine], renderer: SteeredRenderer, store: ArtifactStore
) -> None:
    renderer.permit(3)
    job = submit(steer(replica_id="r1"), num_inference_steps=3)
    finished = job.finished()
    assert job.seen[0] == RenderStarted("r1", "steered")
    assert job.steps() == [0, 1, 2, 3]
    assert job.seen[-2] == RenderProgress("storing", 3, 3)
    assert store.read(finished.artifact) == encode_png(np.zeros((64, 64, 3), np.uint8))
    assert set(finished.seconds) == {"denoising", "storing"}
    assert (finished.seed, finished.determinism) == (42, "exact")


def test_jobs_are_rendered_in_the_order_they_came(steer: Callable[..., Engine], renderer: SteeredRenderer) -> None:
    engine = steer()
    jobs = [submit(engine, job_id=f"j{n}", artifact_key=f"ab/j{n}/1.png") for n in range(4)]
    renderer.permit(12)
    for job in jobs:
        job.finished()
    assert renderer.rendered == ["j0", "j1", "j2", "j3"]


def test_a_running_job_stops_at_its_next_step(steer: Callable[..., Engine], renderer: SteeredRenderer) -> None:
    job = submit(steer(), num_inference_steps=100)
    renderer.permit(2)
    job.until(lambda event: isinstance(event, RenderProgress) and event.step == 2)
    assert job.handle is not None
    job.handle.cancel()
    renderer.permit(1)
    assert job.failed() == RenderFailed("cancelled", "The job was cancelled.")
    assert max(job.steps()) == 2


def test_jobs_that_their_caller_bounds_take_nobodys_place(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    engine = steer(queue_size=1)
    submit(engine).until_stage("denoising")
    together = [submit(engine, bounded=False, job_id=f"together-{n}") for n in range(3)]
    single = submit(engine, job_id="single")
    with pytest.raises(EngineBusy, match="1 jobs waiting"):
        submit(engine)
    together.append(submit(engine, bounded=False, job_id="together-3"))
    renderer.permit(100)
    for job in (*together, single):
        job.finished()
    submit(engine, job_id="next").finished()


def test_a_waiting_job_is_cancelled_at_once_and_makes_room(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    engine = steer(queue_size=1)
    running = submit(engine)
    running.until_stage("denoising")
    waiting = submit(engine, job_id="waiting")
    with pytest.raises(EngineBusy, match="1 jobs waiting"):
        submit(engine)
    assert waiting.handle is not None
    waiting.handle.cancel()
    assert waiting.failed().error_code == "cancelled"
    next_job = submit(engine, job_id="next")
    renderer.permit(6)
    running.finished()
    next_job.finished()
    assert renderer.rendered == ["job", "next"]


def test_cancelling_a_finished_job_does_nothing(steer: Callable[..., Engine], renderer: SteeredRenderer) -> None:
    renderer.permit(3)
    job = submit(steer())
    job.finished()
    assert job.handle is not None
    job.handle.cancel()
    assert job.events.empty()


def test_the_limit_of_a_job_runs_from_the_start_of_rendering(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    engine = steer()
    first = submit(engine, timeout_s=0.0)
    renderer.permit(1)
    failed = first.failed()
    assert (failed.error_code, failed.error) == ("timeout", "The job ran longer than its limit of 0 seconds.")
    renderer.permit(3)
    submit(engine, job_id="next").finished()


def test_an_error_of_the_library_fails_its_job_alone_without_its_text(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    error = ValueError("/secret/path broke")
    renderer.fail["bad"] = error
    engine = steer()
    renderer.permit(4)
    failed = submit(engine, prompt="bad").failed()
    assert failed.error_code == "render_error"
    assert failed.error == "The model failed on this request (ValueError); the service's log says why."
    assert renderer.recovered == [error]
    submit(engine, job_id="next").finished()


def test_an_engine_that_does_not_recover_gives_up_all_its_jobs(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    renderer.fail["big"] = DeviceOutOfMemory("Too little memory.")
    renderer.recovery_error = EngineUnhealthy("The device did not recover.")
    engine = steer()
    jobs = [submit(engine, prompt="big"), submit(engine, job_id="waiting")]
    renderer.permit(1)
    for job in jobs:
        assert isinstance(job.end(), EngineUnhealthy)
    with pytest.raises(EngineUnhealthy, match="did not recover"):
        engine.check_health()
    with pytest.raises(EngineUnhealthy):
        submit(engine)


def test_a_step_that_never_comes_makes_the_engine_unhealthy(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    engine = steer(step_timeout_s=0.2)
    engine.check_health()
    jobs = [submit(engine), submit(engine, job_id="waiting")]
    for job in jobs:
        assert isinstance(job.end(), EngineUnhealthy)
    with pytest.raises(EngineUnhealthy, match=r"no progress for 0\.2 seconds"):
        engine.check_health()


def test_a_job_that_is_rendered_alone_shares_the_engine_with_none(
    steer: Callable[..., Engine], renderer: SteeredRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    disk = threading.Semaphore(0)
    publish = ArtifactStore.publish

    def slow(self: ArtifactStore, key: str, *rest: object) -> object:
        assert disk.acquire(timeout=WAIT_S)
        happened.append(f"{key} stored")
        return publish(self, key, *rest)  # type: ignore[arg-type]

    begin, render, moments = RenderJob.begin, SteeredRenderer.render, {}

    def noted_begin(self: RenderJob, *rest: str) -> None:
        happened.append(f"{self.request.artifact_key} begun")
        moments["told"] = time.monotonic()
        begin(self, *rest)

    def noted_render(self: SteeredRenderer, job: RenderJob) -> PixelPicture:
        moments[job.request.artifact_key] = time.monotonic() - moments["told"]
        return render(self, job)

    monkeypatch.setattr(ArtifactStore, "publish", slow)
    monkeypatch.setattr(RenderJob, "begin", noted_begin)
    monkeypatch.setattr(SteeredRenderer, "render", noted_render)
    renderer.permit(100)
    engine = steer()
    first, alone, last = (submit(engine, artifact_key=key, alone=key == "b") for key in "abc")
    first.until_stage("storing")
    disk.release()
    first.finished()
    alone.until_stage("storing")
    disk.release(2)
    alone.finished()
    last.finished()
    # The news of its beginning has left before anything can happen to it.
    assert moments["b"] >= NEWS_S > moments["a"]
    assert happened == ["a begun", "a stored", "b begun", "b stored", "c begun", "c stored"]


def test_a_load_that_hangs_ends_with_a_sentence(renderer: SteeredRenderer, store: ArtifactStore) -> None:
    go_on = threading.Event()
    renderer.load = lambda: go_on.wait(WAIT_S)  # type: ignore[assignment, method-assign]
    engine = Engine(renderer, store, load_timeout_s=0.2)
    with pytest.raises(ModelUnusable, match=r"not loaded within 0\.2 seconds"):
        engine.start()
    with pytest.raises(EngineUnhealthy):
        submit(engine)
    go_on.set()
    assert engine.close()


def test_a_model_that_does_not_load_is_said_by_start(renderer: SteeredRenderer, store: ArtifactStore) -> None:
    renderer.load_error = ModelUnusable("The model cannot be loaded.")
    engine = Engine(renderer, store)
    with pytest.raises(ModelUnusable, match="cannot be loaded"):
        engine.start()
    with pytest.raises(EngineUnhealthy):
        submit(engine)


def test_closing_cancels_what_runs_and_what_waits_and_leaves_no_thread(
    renderer: SteeredRenderer, store: ArtifactStore
) -> None:
    before = threading.active_count()
    engine = Engine(renderer, store)
    engine.start()
    jobs = [submit(engine), submit(engine, job_id="waiting")]
    jobs[0].until_stage("denoising")
    renderer.permit(1000)
    assert engine.close()
    assert all(job.end() is not None for job in jobs)
    assert threading.active_count() == before


def test_a_listener_that_raises_does_not_stop_the_engine(
    steer: Callable[..., Engine], renderer: SteeredRenderer
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the listener is gone")

    engine = steer()
    engine.submit(submit(engine).handle.request, broken)  # type: ignore[union-attr]
    renderer.permit(9)
    submit(engine, job_id="next").finished()


def test_a_picture_that_is_none_fails_the_job(
    steer: Callable[..., Engine], renderer: SteeredRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: PixelPicture) -> bytes:
        raise RenderBroken("The model produced no picture.")

    monkeypatch.setattr(PixelPicture, "png", broken)
    renderer.permit(3)
    assert submit(steer()).failed() == RenderFailed("render_error", "The model produced no picture.")


def test_a_device_that_fails_behind_its_thread_is_given_up(
    steer: Callable[..., Engine], renderer: SteeredRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: PixelPicture) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(PixelPicture, "wait", lost)
    engine = steer()
    renderer.permit(3)
    assert isinstance(submit(engine).end(), EngineUnhealthy)
    with pytest.raises(EngineUnhealthy, match="RuntimeError"):
        engine.check_health()


def test_a_job_between_the_queue_and_a_device_that_is_lost_is_told(
    steer: Callable[..., Engine], renderer: SteeredRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = steer()
    take = _Waiting.take

    def lost_meanwhile(self: _Waiting) -> RenderJob | None:
        job = take(self)
        if job is not None:
            engine._lose(EngineUnhealthy("The device is lost."))
        return job

    monkeypatch.setattr(_Waiting, "take", lost_meanwhile)
    submit(engine)  # The device's thread is in the true `take` already.
    renderer.permit(3)
    assert isinstance(submit(engine, job_id="second").end(), EngineUnhealthy)


def test_a_job_that_waits_to_be_alone_is_given_up_with_the_device(
    steer: Callable[..., Engine], renderer: SteeredRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = threading.Event()

    def lost(self: PixelPicture) -> None:
        assert fails.wait(WAIT_S)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(PixelPicture, "wait", lost)
    engine = steer()
    renderer.permit(3)
    first, alone = submit(engine, job_id="first"), submit(engine, job_id="alone", alone=True)
    first.until(lambda event: isinstance(event, RenderProgress) and event.step == 3)
    fails.set()
    assert isinstance(first.end(), EngineUnhealthy)
    assert isinstance(alone.end(), EngineUnhealthy)
    assert not any(isinstance(event, RenderStarted) for event in alone.seen)
    assert renderer.rendered == ["first"]


def test_a_request_of_an_earlier_release_is_rendered(steer: Callable[..., Engine], renderer: SteeredRenderer) -> None:
    request = make_request()
    object.__delattr__(request, "alone")
    engine, job = steer(), Job()
    engine.submit(request, job.events.put)
    renderer.permit(3)
    job.finished()


def test_jobs_keep_their_events_apart(steer: Callable[..., Engine], renderer: SteeredRenderer) -> None:
    engine = steer()
    jobs: list[Job] = [submit(engine, job_id=f"j{n}", artifact_key=f"ab/j{n}/1.png") for n in range(3)]
    renderer.permit(9)
    assert [job.finished().artifact.key for job in jobs] == [f"ab/j{n}/1.png" for n in range(3)]
