"""The Ray Serve deployment: one replica, one engine, one device."""

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException

from deployments.artifacts import ArtifactStore
from deployments.engine import RenderHandle
from deployments.engines import create_engine
from deployments.errors import EngineUnhealthy
from deployments.mailbox import Batch, Mailbox
from deployments.models import REPLICA_PLACES, ModelSettings
from deployments.render import RenderEvent, RenderRequest
from observability.logs import configure, get_logger

_log = get_logger("text_to_image")

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
        with _collector_at_rest():
            self._engine = create_engine(model, ArtifactStore(artifacts_root), device=device, replica_id=_replica_id())
            self._engine.start()
        self._together: dict[str, RenderHandle] = {}
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
        quick = getattr(request, "start_may_be_left_out", False)
        events = Mailbox(asyncio.get_running_loop(), quick=quick)
        job = self._engine.submit(request, partial(events.put_from_thread, 0))
        with self._ending_with_the_call([job]):
            async for batch in events:
                for _, event in batch:
                    yield event

    async def render_together(self, requests: tuple[RenderRequest, ...]) -> AsyncIterator[Batch]:
        """Render several quick pictures, one after the other; call it as `render`.

        Yields their events in batches, each event with the number of its request: RenderStarted and RenderProgress only
        of what takes longer than quick jobs do. `cancel_together` stops single ones. Raises EngineUnhealthy as `render`
        does. All are taken: Serve bounds the calls, whose jobs are few.
        """
        events = Mailbox(asyncio.get_running_loop(), jobs=len(requests), quick=True)
        jobs: dict[str, RenderHandle] = {}
        with self._ending_with_the_call(jobs.values()):
            for number, request in enumerate(requests):
                take_event = partial(events.put_from_thread, number)
                jobs[request.artifact_key] = self._engine.submit(request, take_event, bounded=False)
            self._together |= jobs
            try:
                async for batch in events:
                    yield batch
            finally:
                for key in jobs:
                    self._together.pop(key, None)

    async def cancel_together(self, artifact_keys: tuple[str, ...]) -> None:
        """Stop those jobs of `render_together` that this replica has; they end with RenderFailed `cancelled`."""
        for key in artifact_keys:
            if (job := self._together.get(key)) is not None:
                job.cancel()

    @contextlib.contextmanager
    def _ending_with_the_call(self, jobs: Collection[RenderHandle]) -> Iterator[None]:
        try:
            yield
        except EngineUnhealthy:
            self._exit_soon()
            raise
        finally:
            # Reached by CancelledError and GeneratorExit too; after the last event it does nothing.
            for job in jobs:
                job.cancel()

    def check_health(self) -> None:
        """Raise EngineUnhealthy when the device is lost or the store hangs; Serve then replaces this replica."""
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


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Leave out Python's garbage collector while a model loads, and what is there after it for ever, garbage too.

    Libraries and weights are a million objects that stay: looking at them again and again takes a sixth of a load.
    What a load that failed has left behind is collected as ever, device memory among it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


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
