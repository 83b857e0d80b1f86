"""A tracker and a model deployment inside the test's own process, for what the real ones do too rarely."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from callback.errors import Unavailable
from callback.records import Changes, Claim, ClaimJobs, Cursor, Finish, JobView, Release, Renew
from callback.states import JobState
from deployments.mailbox import Batch
from deployments.render import ArtifactRef, RenderEvent, RenderFinished, RenderRequest, RenderStarted
from serve_app.job_request import JobRequest

REQUEST = JobRequest(prompt="x", width=64, height=64, num_inference_steps=1, guidance_scale=1, seed=1)


def view(key: str = "k1", job_id: str = "job", seq: int = 1, **changes: Any) -> JobView:
    """Return a queued job, with changes."""
    values: dict[str, Any] = {
        "owner": "public",
        "kind": "text_to_image",
        "model": "m",
        "state": JobState.QUEUED,
        "attempt": 0,
        "request_json": REQUEST.model_dump_json(),
        "fingerprint": "f",
        "queued_at": 0.0,
        "has_callback": False,
    }
    return JobView(key=key, job_id=job_id, seq=seq, **values | changes)


def claim(key: str = "k1", attempt: int = 1, request_json: str | None = None) -> Claim:
    """Return a claim of the job with this key."""
    return Claim(key, f"job-{key}", attempt, "m", request_json or REQUEST.model_dump_json(), f"{key}/{attempt}.png")


OWN_PICTURE = "its own"
"""As the key of a picture in a script: that of the job which plays it."""
FINISHED = RenderFinished(ArtifactRef(OWN_PICTURE, "0" * 64, 1, 64, 64), 1, "exact")


@dataclass
class FakeTracker:
    """Hands out prepared claims, each after `claim_s`, and records what it is told and how many it is asked for."""

    claims: list[Claim] = field(default_factory=list)
    claim_s: float = 0.0
    limits: list[int] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    reports: list[Finish | Release] = field(default_factory=list)
    renewals: list[Renew] = field(default_factory=list)
    unavailable: int = 0
    answers: dict[str, JobView] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stream: asyncio.Queue[Changes | Exception] = field(default_factory=asyncio.Queue)
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    renewed: asyncio.Event = field(default_factory=asyncio.Event)

    async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
        self.limits.append(command.limit)
        if self.claim_s:
            await asyncio.sleep(self.claim_s)
        taken, self.claims = self.claims[: command.limit], self.claims[command.limit :]
        return tuple(taken)

    async def renew(self, command: Renew, **_: Any) -> tuple[str, ...]:
        self.renewals.append(command)
        self.renewed.set()
        return tuple(one.key for one in command.progress if one.key in self.lost)

    async def finish(self, command: Finish, **_: Any) -> bool:
        return self._report(command)

    async def release(self, command: Release, **_: Any) -> bool:
        return self._report(command)

    def _report(self, command: Finish | Release) -> bool:
        if self.unavailable:
            self.unavailable -= 1
            raise Unavailable("not now")
        self.reports.append(command)
        self.reported.set()
        return True

    async def get(self, _owner: str, job_id: str) -> JobView | None:
        self.asked.append(job_id)
        return self.answers.get(job_id)

    async def changes(self, _cursor: Cursor, _wait_s: float) -> Changes:
        change = await self.stream.get()
        if isinstance(change, Exception):
            raise change
        return change


class FakeResponse:
    """A streaming response that plays a script of events; an exception in it is raised, an event is waited for."""

    def __init__(self, script: list[RenderEvent | Exception | asyncio.Event], on_cancel: Exception | None) -> None:
        self._script = script
        self._on_cancel = on_cancel
        self._cancelled = asyncio.Event()
        self._events = self._play()
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1
        self._cancelled.set()
        if self._on_cancel is not None:
            raise self._on_cancel

    def __aiter__(self) -> "FakeResponse":
        return self

    async def __anext__(self) -> RenderEvent:
        return await anext(self._events)

    async def _play(self) -> AsyncIterator[RenderEvent]:
        from ray.serve.exceptions import RequestCancelledError

        for one in self._script:
            if isinstance(one, asyncio.Event):
                waits = [asyncio.ensure_future(one.wait()), asyncio.ensure_future(self._cancelled.wait())]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
                if self._cancelled.is_set():
                    raise RequestCancelledError("cancelled")
            elif isinstance(one, Exception):
                raise one
            else:
                yield one


class FakeHandle:
    """A deployment handle: each call plays the next script."""

    def __init__(self, *scripts: list[Any], on_cancel: Exception | None = None) -> None:
        self._scripts = list(scripts)
        self._on_cancel = on_cancel
        self.responses: list[FakeResponse] = []
        self.requests: list[RenderRequest] = []
        self.together: list[tuple[RenderRequest, ...]] = []
        self.called = asyncio.Event()

    def options(self, **_: Any) -> "FakeHandle":
        return self

    @property
    def render(self) -> "FakeHandle":
        return self

    @property
    def render_together(self) -> "FakeTogether":
        return FakeTogether(self)

    def remote(self, request: RenderRequest) -> FakeResponse:
        self.requests.append(request)
        response = FakeResponse([_of(request, one) for one in self._scripts.pop(0)], self._on_cancel)
        self.responses.append(response)
        self.called.set()
        return response


def _of(request: RenderRequest, event: Any) -> Any:
    if isinstance(event, RenderFinished) and event.artifact.key == OWN_PICTURE:
        return replace(event, artifact=replace(event.artifact, key=request.artifact_key))
    return event


class FakeTogether:
    """The method for several jobs of a deployment handle: plays their scripts one after the other."""

    def __init__(self, handle: FakeHandle) -> None:
        self._handle = handle
        self._responses: list[FakeResponse] = []

    def remote(self, requests: tuple[RenderRequest, ...]) -> "FakeTogether":
        self._handle.together.append(requests)
        self._responses = [self._handle.remote(request) for request in requests]
        return self

    async def __aiter__(self) -> AsyncIterator[Batch]:
        for number, response in enumerate(self._responses):
            with suppress(StopAsyncIteration):
                while True:
                    yield ((number, await anext(response)),)

    def cancel(self) -> None:
        for response in self._responses:
            response.cancel()


STARTED = RenderStarted("replica", "cpu")


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Return when the condition holds; fails after the timeout."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of several objects have no common event
            await asyncio.sleep(0.005)
