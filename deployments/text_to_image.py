"""The Ray Serve deployment: one replica, one engine, one device."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException

from deployments.artifacts import ArtifactStore
from deployments.engines import create_engine
from deployments.errors import EngineUnhealthy
from deployments.models import REPLICA_PLACES, ModelDescription, ModelSettings, describe
from deployments.render import (
    RenderEvent,
    RenderFailed,
    RenderFinished,
    RenderProgress,
    RenderRequest,
    RenderStarted,
)
from observability.logs import configure, get_logger

_log = get_logger("text_to_image")

PROGRESS_INTERVAL_S = 1.0
"""Least time between two progress events of a job: each one is a message through Ray, and the ingress tells the tracker
once a second."""

PROGRESS_HOLD_S = 0.02
"""Progress waits this long for what makes it stale."""

START_HOLD_S = 0.05
"""So does a quick job's start, if the caller agrees: a picture that is stored by then needs no message before it."""

HEALTH_CHECK_PERIOD_S = 2.0
"""A dead replica is replaced after at most this long (Serve's default is 10): its jobs wait for it."""

_EXIT_GRACE_S = 5.0  # for the failed jobs' last messages, and for Serve to replace the replica by itself
_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


class TextToImage:
    """A model replica. Its constructor loads the model; Serve sends requests when that has returned."""

    def __init__(
        self, model: ModelSettings, artifacts_root: str, device: str = "auto", log_level: str = "INFO"
    ) -> None:
        configure(log_level)
        self._model = model
        self._engine = create_engine(model, ArtifactStore(artifacts_root), device=device, replica_id=_replica_id())
        self._engine.start()
        self._exit_timer: threading.Timer | None = None
        _log.info("model %s is loaded on %s", model.name, self._engine.device)

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Render one picture; call it with `handle.options(stream=True)`.

        Yields RenderStarted, then RenderProgress (the newest one, at most one a second), then RenderFinished or
        RenderFailed; see `RenderRequest.start_may_be_left_out`. `cancel()` of the response stops the job at its next
        denoising step; a caller that only drops the response, or is itself cancelled, leaves the job running (Ray
        2.60), so it must call `cancel()` in a `finally`. Raises EngineUnhealthy if the device was lost with the job,
        EngineBusy if more was sent than the replica takes: another attempt may succeed.
        """
        # An ingress of an earlier release waits for each start.
        hold_start = getattr(request, "start_may_be_left_out", False)
        events = _Mailbox(asyncio.get_running_loop(), hold_start=hold_start)
        job = self._engine.submit(request, events.put_from_thread)
        try:
            async for event in events:
                yield event
        except EngineUnhealthy:
            self._exit_soon()
            raise
        finally:
            # Reached by CancelledError and GeneratorExit too; after the last event it does nothing.
            job.cancel()

    async def describe(self) -> ModelDescription:
        """Return the description of this replica's model."""
        return describe(self._model)

    def check_health(self) -> None:
        """Raise EngineUnhealthy when the device is lost; Serve then replaces this replica."""
        try:
            self._engine.check_health()
        except EngineUnhealthy:
            self._exit_soon()
            raise

    def __del__(self) -> None:
        """Close the engine; Serve calls this when it takes the replica down."""
        if (engine := getattr(self, "_engine", None)) is not None:
            engine.close()

    def _exit_soon(self) -> None:
        # A thread that hangs inside the driver ignores every polite way to end a process.
        if self._exit_timer is None:
            self._exit_timer = threading.Timer(_EXIT_GRACE_S, os._exit, (_EXIT_CODE,))
            self._exit_timer.daemon = True
            self._exit_timer.start()


class _Mailbox:
    """Carries a job's events from engine threads to one asynchronous reader: of progress only the newest, of a job that
    ends at once only the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, hold_start: bool = False) -> None:
        self._loop = loop
        self._hold_start = hold_start
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._lock = threading.Lock()
        self._events: list[RenderEvent | EngineUnhealthy] = []
        self._started_at: float | None = None

    def put_from_thread(self, event: RenderEvent | EngineUnhealthy) -> None:
        if isinstance(event, RenderStarted):
            self._started_at = time.monotonic()
        elif isinstance(event, RenderFinished) and self._started_at is not None:
            event = replace(event, since_start_s=time.monotonic() - self._started_at)
        progress = isinstance(event, RenderProgress)
        with self._lock:
            # Nobody needs to know how far it was before what follows.
            if stale := bool(self._events) and isinstance(self._events[-1], RenderProgress):
                self._events.pop()
            self._events.append(event)
        # Progress that takes the place of older progress wakes nobody: a job may have hundreds of steps.
        if not (stale and progress):
            self._loop.call_soon_threadsafe(self._notice, not (progress or isinstance(event, RenderStarted)))

    def _notice(self, end: bool) -> None:
        self._arrived.set()
        if end:
            self._ended.set()

    def _take(self) -> list[RenderEvent | EngineUnhealthy]:
        with self._lock:
            taken, self._events = self._events, []
            if len(taken) > 1 and isinstance(taken[-1], RenderProgress):
                # It waits for what makes it stale.
                self._events.append(taken.pop())
        self._arrived.clear()
        if self._events:
            self._arrived.set()
        if self._hold_start and len(taken) > 1 and isinstance(taken[-1], RenderFinished):
            del taken[:-1]
        return taken

    async def __aiter__(self) -> AsyncIterator[RenderEvent]:
        hold_s = START_HOLD_S if self._hold_start else 0.0
        while True:
            await self._arrived.wait()
            if hold_s:
                await self._wait_for_end(hold_s)
            hold_s = PROGRESS_HOLD_S
            taken = self._take()
            for event in taken:
                if isinstance(event, EngineUnhealthy):
                    raise event
                yield event
                if isinstance(event, RenderFinished | RenderFailed):
                    return
            if taken and isinstance(taken[-1], RenderProgress):
                await self._wait_for_end(PROGRESS_INTERVAL_S)

    async def _wait_for_end(self, timeout_s: float) -> None:
        """Return when the last event is there, or after `timeout_s`."""
        if not self._ended.is_set():
            # Not `wait_for`: on Python 3.11 it can swallow the cancellation of the request.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._ended.wait()


def deployment_for(
    model: ModelSettings, device: str = "auto", *, name: str | None = None, max_ongoing_requests: int = REPLICA_PLACES
) -> serve.Deployment:
    """Return the Serve deployment of a model; bind it with `TextToImage`'s arguments, or use `application_for`.

    Scaling is the configuration file's: this states only what a replica needs. `device` auto takes one GPU per replica
    if the cluster has any.
    """
    return serve.deployment(
        name=name or f"TextToImage-{model.name}",
        ray_actor_options=actor_resources(model, resolve_device(device)),
        max_ongoing_requests=max_ongoing_requests,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        request_router_config=RequestRouterConfig(request_router_class="deployments.routing:FreeFirstRouter"),
    )(TextToImage)


def application_for(
    model: ModelSettings, artifacts_root: str, device: str = "auto", *, name: str | None = None, log_level: str = "INFO"
) -> serve.Application:
    """Return the model's deployment, bound: what an ingress takes as a handle."""
    return deployment_for(model, device, name=name).bind(model, artifacts_root, resolve_device(device), log_level)


def resolve_device(device: str) -> str:
    """Return `cuda` or `cpu` for `auto`, by what the running Ray cluster has; other devices as they are."""
    if device != "auto":
        return device
    return "cuda" if ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"


def actor_resources(model: ModelSettings, device: str) -> dict[str, float]:
    """Return the resources that Ray reserves for one replica. Engines without a real model take none."""
    if model.engine != "diffusers":
        return {"num_cpus": 0}
    if device.startswith("cuda"):
        return {"num_cpus": 1, "num_gpus": 1}
    return {"num_cpus": model.threads}


def _replica_id() -> str:
    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:
        return f"local-{os.getpid()}"
