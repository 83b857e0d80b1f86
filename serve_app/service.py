"""What one ingress replica is made of, and the life of its parts. The routers work on this."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from ray.serve.handle import DeploymentHandle

from callback.allowance import Allowance
from callback.client import TrackerClient
from callback.egress import EgressPolicy
from callback.errors import TrackerError
from callback.records import JobView, NewJob, Picture, Submit
from callback.states import FINAL, JobState
from deployments.adapters import AdapterCatalogue
from deployments.artifacts import ArtifactStore
from deployments.models import ModelDescription, ModelSettings, describe
from deployments.render import ArtifactRef
from serve_app.access import epistula
from serve_app.access.keys import KeyRing
from serve_app.adapter_lookup import AdapterLookup
from serve_app.dispatcher import Dispatcher
from serve_app.mirror import Mirror
from serve_app.replicas import ReplicaWatch
from serve_app.settings import Settings
from serve_app.supervision import keep_running

MAX_LONG_POLLS = 1000
"""Half of the places that an ingress replica has: submits and plain polls always find one."""
PICTURE_READERS = 16
"""Pictures read at once, on threads of their own: a store that hangs must not take the threads that others need."""
BURST_S = 5.0
"""So many seconds' worth of its requests a client may send at once."""
STOP_MARGIN_S = 5.0
"""Kept of Serve's shutdown budget for handing leases back."""


class TrackerPictures:
    """The artifact store as the tracker wants to see it (`callback.records.PictureStore`)."""

    # For pickles of an earlier release.
    _link_s: int | None = None

    def __init__(self, artifacts: ArtifactStore, link_s: int | None = None) -> None:
        self._artifacts = artifacts
        self._link_s = link_s

    @property
    def identity(self) -> str:
        """The root of the store, and how long its links last."""
        return self._artifacts.root if self._link_s is None else f"{self._artifacts.root} {self._link_s}"

    def read(self, picture: Picture) -> bytes:
        """Return the verified PNG."""
        return self._artifacts.read(artifact_ref(picture))

    def link(self, picture: Picture) -> str | None:
        """Return a link that the object store has signed, if the settings want one."""
        return None if self._link_s is None else self._artifacts.link(picture.key, self._link_s)

    def delete(self, key: str) -> None:
        """Remove a picture."""
        self._artifacts.delete(key)

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove what writers that died have left half written."""
        return self._artifacts.remove_leftovers(older_than_s)


def artifact_ref(picture: Picture) -> ArtifactRef:
    """Return the rendering room's name for a recorded picture."""
    return ArtifactRef(picture.key, picture.sha256, picture.size_bytes, picture.width, picture.height)


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model that requests may name."""

    settings: ModelSettings
    description: ModelDescription
    adapters: AdapterLookup


class Service:
    """Connection to the tracker, mirror, dispatchers, policies: everything that the HTTP layer uses."""

    def __init__(self, settings: Settings, handles: dict[str, DeploymentHandle], *, allow_loopback: bool) -> None:
        self.settings = settings
        self.models = {
            model.name: OfferedModel(model, describe(model), AdapterLookup(AdapterCatalogue.of(model)))
            for model in settings.offered_models()
        }
        config = settings.tracker_config(allow_loopback=allow_loopback)
        if settings.hotkey is not None:
            epistula.check_installed()
        self.keys = KeyRing(settings.keys_file.expanduser()) if settings.keys_file else None
        rate = settings.requests_per_second_per_client
        self.requests = Allowance(rate, rate * BURST_S, time.monotonic) if rate else None
        self.artifacts = ArtifactStore(settings.resolved_artifacts_url())
        self.picture_readers = ThreadPoolExecutor(PICTURE_READERS, thread_name_prefix="pictures")
        self.client = TrackerClient(
            config,
            TrackerPictures(self.artifacts, settings.image_link_s),
            name=settings.tracker_name,
            takeover_after_s=settings.tracker_takeover_s,
        )
        self.policy = EgressPolicy(
            allow_loopback=config.callback_allow_loopback, allowed_networks=config.callback_allowed_networks
        )
        self.mirror = Mirror(self.client, self._notice, self._tell_new_tracker)
        self.replicas = ReplicaWatch({handle.deployment_name: name for name, handle in handles.items()})
        holder = f"{os.getpid()}-{uuid4().hex[:8]}"
        self._dispatchers = {
            name: Dispatcher(
                model=name,
                handle=handle,
                client=self.client,
                has_queued=self.mirror.has_queued,
                is_cancelled=self.mirror.is_cancelled,
                devices=partial(self.replicas.running, name),
                processing=partial(self.mirror.processing, name),
                job_timeout_s=settings.job_timeout_s,
                holder=holder,
            )
            for name, handle in handles.items()
        }
        self._tasks: list[asyncio.Task[Any]] = []
        self._long_polls = 0
        self._public_key: str | None = None
        self.stopping = False

    @property
    def default_model(self) -> str:
        """The model of requests that name none."""
        return next(iter(self.models))

    @property
    def troubles(self) -> list[str]:
        """What keeps accepted jobs from being rendered, or clients from being known, as sentences."""
        everyone = [self.keys, *self._dispatchers.values()]
        return [one.trouble for one in everyone if one is not None and one.trouble is not None]

    async def public_key(self) -> str | None:
        """Return what callbacks are signed with, which stays the same; None as long as no tracker has said it."""
        if self._public_key is None:
            with suppress(TrackerError):
                self._public_key = (await self.client.health()).public_key
        return self._public_key

    def _tell_new_tracker(self) -> None:
        for dispatcher in self._dispatchers.values():
            dispatcher.tell_soon()

    def _notice(self, view: JobView) -> None:
        if view.model in self._dispatchers:
            self._dispatchers[view.model].notice(view)

    async def submit(self, job: NewJob) -> JobView:
        """Have the job accepted, durably, and its model's dispatcher look for it. Raises what the tracker raises."""
        view = await self.client.submit(Submit(job))
        if view.state is JobState.QUEUED:
            self.mirror.accepted(view)
            self._dispatchers[view.model].expect()
        return view

    async def cancel(self, owner: str, job_id: str) -> JobView:
        """Have the job cancelled. Raises what the tracker raises."""
        view = await self.client.cancel(owner, job_id)
        if view.state in FINAL:
            self.mirror.ended(view)
        return view

    async def long_poll(self, view: JobView, wait_s: float) -> JobView:
        """Wait for the job's end; with too many waiters already, answer at once."""
        if self._long_polls >= MAX_LONG_POLLS or self.stopping:
            return view
        self._long_polls += 1
        try:
            return await self.mirror.wait_until_settled(view, wait_s)
        finally:
            self._long_polls -= 1

    def check_health(self) -> None:
        """Raise if a background loop has ended, so that Serve replaces this replica."""
        ended = [task.get_name() for task in self._tasks if task.done()]
        if self.client.has_ended:
            ended.append("sending of commands")
        if ended and not self.stopping:
            raise RuntimeError(f"Background work has ended: {', '.join(ended)}.")

    async def start(self) -> None:
        """Connect to the tracker (creating it, or taking over from an older one) and begin to dispatch."""
        await self.client.start()
        self._tasks = [keep_running("mirror", self.mirror.follow), keep_running("replicas", self.replicas.watch)]
        if self.keys is not None:
            self._tasks.append(keep_running("keys", self.keys.watch))
        for dispatcher in self._dispatchers.values():
            dispatcher.start()

    async def stop(self, budget_s: float) -> None:
        """Accept no more, let running jobs finish within the budget, hand the others back to the tracker."""
        self.stopping = True
        grace_s = max(0.0, budget_s - STOP_MARGIN_S)
        await asyncio.gather(*(dispatcher.stop(grace_s) for dispatcher in self._dispatchers.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()
        self.picture_readers.shutdown(wait=False, cancel_futures=True)
        for model in self.models.values():
            model.adapters.close()
