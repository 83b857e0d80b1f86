"""The way to the tracker from other processes: find it, create it, replace it, ask it until it answers.

Handles to a dead actor never heal, so it is found anew by name.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import ray
from packaging.version import Version
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from callback.config import TRACKER_NAMESPACE, TrackerConfig, code_fingerprint, code_version
from callback.errors import SILENCE, TrackerError, TrackerUnavailable
from callback.records import PictureStore, TrackerIdentity
from observability.logs import get_logger

ANSWER_TIMEOUT_S = 5.0
"""A call that has no answer by then is sent again."""
START_TIMEOUT_S = 60.0
"""How long a new tracker may take from its creation to its first answer."""
RETIRE_TIMEOUT_S = 10.0
RETRY_PAUSE_S = 0.1
WATCH_PAUSE_S = 1.0
PAUSE_TOLERANCE_S = 1.0

_log = get_logger("tracker-client")


class TrackerConnection:
    """The tracker of a name, whoever that is at the moment. Of one event loop."""

    def __init__(self, config: TrackerConfig, pictures: PictureStore, name: str, takeover_after_s: float) -> None:
        self._config = config
        self._pictures = pictures
        self._name = name
        self._takeover_after_s = takeover_after_s
        self._connected_at = time.time()
        self._handle: Any = None
        self._resolving = asyncio.Lock()
        self._last_answer = time.monotonic()
        self._patient_until = time.monotonic() + START_TIMEOUT_S / 2
        self._lost = asyncio.Event()

    async def take_over_if_older(self) -> None:
        """Create the tracker if there is none, and replace one of older code or configuration.

        Raises `TrackerUnavailable`.
        """
        # Here, because what an import raises must not pass for an answer that may be better next time.
        await asyncio.to_thread(_actor_class)
        identity = await self._identity()
        while self._supersedes(identity):
            _log.warning("taking over from another tracker", extra={"found": str(identity)})
            await self._retire(await self._resolve())
            identity = await self._identity()

    async def watch_over_successors(self) -> None:
        """Look at every tracker that follows one which died: a replica of an older release may have made it."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            try:
                await self.take_over_if_older()
            except Exception as error:  # noqa: BLE001 - whatever Ray raises must not end the watch for ever
                _log.warning("the tracker's successor cannot be looked at", extra={"cause": str(error)})
                self._lost.set()
                await asyncio.sleep(WATCH_PAUSE_S)

    async def _identity(self) -> TrackerIdentity:
        deadline = time.monotonic() + START_TIMEOUT_S
        return cast(TrackerIdentity, await self.call(lambda tracker: tracker.identity.remote(), deadline=deadline))

    async def _retire(self, handle: Any) -> None:
        try:
            await self._ask(handle.retire.remote(), RETIRE_TIMEOUT_S)
        except (RayError, TimeoutError, AttributeError):
            _log.warning("the older tracker did not retire by itself")
        await self._replace(handle)

    def _supersedes(self, found: TrackerIdentity) -> bool:
        """Tell whether our code or configuration shall replace what runs.

        Newer code replaces older; of the same code, or of code of the same age, whoever connected last.
        """
        ours, theirs = code_version(), found.code_version
        config = self._config.fingerprint(self._pictures.identity)
        if (found.code_fingerprint, theirs[0], found.config_fingerprint) == (code_fingerprint(), ours[0], config):
            return False
        order = (Version(ours[0]), ours[1]), (Version(theirs[0]), theirs[1])
        is_other_code = (found.code_fingerprint, theirs[0]) != (code_fingerprint(), ours[0])
        if is_other_code and order[0] != order[1]:
            return order[0] > order[1]
        # A tracker of older code says nothing about when it was configured.
        return self._connected_at > getattr(found, "configured_at", 0.0)

    async def _resolve(self) -> Any:
        async with self._resolving:
            if self._handle is None:
                self._handle = await asyncio.to_thread(self._find_or_create)
            return self._handle

    def _find_or_create(self) -> Any:
        options: dict[str, Any] = {
            "name": self._name,
            "namespace": TRACKER_NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_concurrency": 1000,
            "num_cpus": 0,
        }
        if self._config.store_is_local:
            # On another node a restarted tracker would open an empty database, and know of no job.
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        return ray.remote(_actor_class()).options(**options).remote(self._config, self._pictures, self._connected_at)

    def _forget(self, handle: Any) -> None:
        if self._handle is handle:
            self._handle = None
            self._lost.set()
            # Whoever comes next must not be replaced while it starts.
            self._patient_until = time.monotonic() + START_TIMEOUT_S

    async def _replace(self, handle: Any) -> None:
        """End the actor behind `handle` for good; the epoch in the store keeps it harmless until it is really gone."""
        await asyncio.to_thread(ray.kill, handle, no_restart=True)
        self._forget(handle)

    async def _ask(self, reference: Any, timeout_s: float) -> Any:
        async with asyncio.timeout(timeout_s):
            answer = await reference
        self._last_answer, self._patient_until = time.monotonic(), 0.0
        return answer

    @property
    def _silent_s(self) -> float:
        return time.monotonic() - self._last_answer

    def _is_impatient(self) -> bool:
        return time.monotonic() > self._patient_until

    async def call(
        self, call: Callable[[Any], Any], *, deadline: float, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Any:
        """Call the tracker until it answers; `deadline` is monotonic. Raises `TrackerUnavailable` and its errors."""
        handle: Any = None
        while True:
            asked_at = time.monotonic()
            timeout_s = min(answer_timeout_s, max(0.05, deadline - asked_at))
            try:
                async with asyncio.timeout(timeout_s):
                    handle = await self._resolve()
                return await self._ask(call(handle), timeout_s)
            except RayTaskError as error:
                self._last_answer = time.monotonic()
                cause = error.cause
                # A tracker that is being replaced says so; its successor will answer.
                if not isinstance(cause, TrackerUnavailable):
                    raise cause if isinstance(cause, TrackerError) else error from None
            except (TimeoutError, GetTimeoutError):
                if time.monotonic() - asked_at > 2 * timeout_s + PAUSE_TOLERANCE_S:
                    # It was we who stood still: that says nothing about the tracker.
                    self._last_answer = time.monotonic()
                if handle is not None and self._silent_s > self._takeover_after_s and self._is_impatient():
                    _log.error("tracker is silent; replacing it", extra={"silent_s": round(self._silent_s, 1)})
                    await self._replace(handle)
            except TaskCancelledError:
                pass  # With the request whose call it was; if that is still there, it asks again.
            # ActorUnschedulableError: its node is gone. ValueError: the name was freed while we asked for it.
            except (RayActorError, ActorUnschedulableError, ValueError):
                self._forget(handle)
            if time.monotonic() >= deadline:
                raise TrackerUnavailable(SILENCE)
            await asyncio.sleep(RETRY_PAUSE_S)


def _actor_class() -> type:
    # Its databases and HTTP clients take a second to import, and whoever builds the application never connects.
    from callback.actor import TrackerActor  # noqa: PLC0415

    return TrackerActor
