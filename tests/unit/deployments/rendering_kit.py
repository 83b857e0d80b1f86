"""How a test talks to an engine: a request with defaults, and a job whose events can be awaited."""

import queue
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from deployments.diffusers_renderer import DiffusersRenderer
from deployments.engine import Engine, RenderHandle
from deployments.errors import EngineUnhealthy
from deployments.render import RenderEvent, RenderFailed, RenderFinished, RenderProgress, RenderRequest

WAIT_S = 60
"""Bound of every wait: reached only if something is broken."""


def make_request(**changes: object) -> RenderRequest:
    request = RenderRequest(
        job_id="job",
        artifact_key="ab/job/1.png",
        prompt="a cat",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=5.0,
        seed=42,
        timeout_s=WAIT_S,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


@dataclass
class Job:
    """A submitted request and its events."""

    events: "queue.Queue[RenderEvent | EngineUnhealthy]" = field(default_factory=queue.Queue)
    seen: list[RenderEvent | EngineUnhealthy] = field(default_factory=list)
    handle: RenderHandle | None = None

    def next(self) -> RenderEvent | EngineUnhealthy:
        event = self.events.get(timeout=WAIT_S)
        self.seen.append(event)
        return event

    def until(self, wanted: Callable[[RenderEvent | EngineUnhealthy], bool]) -> RenderEvent | EngineUnhealthy:
        while not wanted(event := self.next()):
            pass
        return event

    def until_stage(self, stage: str) -> None:
        self.until(lambda event: isinstance(event, RenderProgress) and event.stage == stage)

    def end(self) -> RenderFinished | RenderFailed | EngineUnhealthy:
        event = self.until(lambda event: isinstance(event, RenderFinished | RenderFailed | EngineUnhealthy))
        assert isinstance(event, RenderFinished | RenderFailed | EngineUnhealthy)
        return event

    def finished(self) -> RenderFinished:
        event = self.end()
        assert isinstance(event, RenderFinished), event
        return event

    def failed(self) -> RenderFailed:
        event = self.end()
        assert isinstance(event, RenderFailed), event
        return event

    def steps(self) -> list[int]:
        return [event.step for event in self.seen if isinstance(event, RenderProgress) and event.stage == "denoising"]


def submit(engine: Engine, *, bounded: bool = True, **changes: object) -> Job:
    job = Job()
    job.handle = engine.submit(make_request(**changes), job.events.put, bounded=bounded)
    return job


def render(engine: Engine, **changes: object) -> RenderFinished:
    return submit(engine, **changes).finished()


def renderer_of(engine: Engine) -> DiffusersRenderer:
    renderer = engine._renderer
    assert isinstance(renderer, DiffusersRenderer)
    return renderer
