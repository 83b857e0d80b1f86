"""One request inside an engine: its events, its clock, and the point where it can be stopped."""

import threading
import time
from collections.abc import Callable

from deployments.errors import EngineUnhealthy, RenderCancelled, RenderingError, RenderTimeout
from deployments.render import (
    ArtifactRef,
    RenderEvent,
    RenderFailed,
    RenderFinished,
    RenderProgress,
    RenderRequest,
    RenderStarted,
    Stage,
)
from observability.logs import get_logger

_log = get_logger("engine")

EventSink = Callable[[RenderEvent | EngineUnhealthy], None]
"""Receives a job's events in order, from the engine's threads; must not block. The last one comes exactly once:
RenderFinished, RenderFailed, or EngineUnhealthy (the engine died with this job; another replica may render it)."""


class RenderJob:
    """A request on its way through an engine. `cancelled` is set from outside; the other calls are the engine's."""

    def __init__(
        self, request: RenderRequest, on_event: EventSink, withdraw: Callable[["RenderJob"], bool] = lambda _: False
    ) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.moved_at: float | None = None
        """When this job last made progress on the device (monotonic seconds); None when it waits for nothing of it."""
        self.storing_since: float | None = None
        """When its picture began to be encoded and stored (monotonic seconds); None before."""
        self._on_event = on_event
        self._withdraw = withdraw
        self._deadline = float("inf")
        self._rested_at = 0.0
        self._stage: Stage | None = None
        self._stage_began = 0.0
        self._step = 0
        self._lock = threading.Lock()
        self._settled = False

    def cancel(self) -> None:
        """Stop the job: at once while it waits, else at its next denoising step. Too late, it does nothing."""
        self.cancelled.set()
        if self._withdraw(self):
            self.fail(RenderCancelled())

    def begin(self, replica_id: str, device: str) -> None:
        """Start the clock of the job's timeout and report that the device has begun."""
        self.moved_at = time.monotonic()
        self._deadline = self.moved_at + self.request.timeout_s
        self._emit(RenderStarted(replica_id, device))

    def checkpoint(self) -> None:
        """Raise RenderCancelled or RenderTimeout if the job must stop here."""
        if self.cancelled.is_set():
            raise RenderCancelled
        if time.monotonic() > self._deadline:
            raise RenderTimeout(f"The job ran longer than its limit of {self.request.timeout_s:g} seconds.")

    def enter(self, stage: Stage) -> None:
        """Report that `stage` begins; the seconds since the last call count for the stage before."""
        self._close_stage()
        self._stage = stage
        self._report()

    def start_over(self) -> None:
        """Say that the device begins once more; the clock of the job's timeout goes on."""
        self._step = 0
        self.warnings.clear()

    def rest(self) -> None:
        """Say that the device was told all that it is to do, and that the picture waits for its turn to be stored."""
        # The seconds until the picture is in host memory still count for the stage before.
        self._emit(RenderProgress("storing", self._step, self.request.num_inference_steps))
        self.moved_at, self._rested_at = None, time.monotonic()

    def resume(self) -> None:
        """Say that the picture's turn has come. The wait for it counts for no limit: others' pictures took so long."""
        self.moved_at = time.monotonic()
        self._deadline += self.moved_at - self._rested_at

    def leave_device(self) -> None:
        """Say that the device has nothing more to do for this job: what takes long from here is not its fault."""
        self._close_stage()
        self._stage = "storing"
        self.moved_at, self.storing_since = None, time.monotonic()

    def step_done(self, step: int) -> None:
        """Report that `step` denoising steps are done."""
        self._step = min(step, self.request.num_inference_steps)
        self._report()

    def finish(self, artifact: ArtifactRef) -> None:
        """Report the published picture; whatever comes later is ignored."""
        self._close_stage()
        seconds = {stage: round(value, 6) for stage, value in self.seconds.items()}
        # Class `seeded` is rendered in the same way for now: it gets more than it asked for, and is told so.
        self._settle(RenderFinished(artifact, self.request.seed, "exact", seconds, tuple(self.warnings)))

    def fail(self, error: RenderingError) -> None:
        """Report why there will be no picture; whatever comes later is ignored."""
        self._settle(RenderFailed(error.code, str(error)))

    def abandon(self, error: EngineUnhealthy) -> None:
        """Report that the engine died with this job; whatever comes later is ignored."""
        self._settle(error)

    def _report(self) -> None:
        self.moved_at = time.monotonic()
        if self._stage is not None:
            self._emit(RenderProgress(self._stage, self._step, self.request.num_inference_steps))

    def _close_stage(self) -> None:
        now = time.monotonic()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._stage_began
        self._stage_began = now

    def _emit(self, event: RenderEvent | EngineUnhealthy) -> None:
        with self._lock:
            if not self._settled:
                self._deliver(event)

    def _settle(self, event: RenderEvent | EngineUnhealthy) -> None:
        with self._lock:
            if not self._settled:
                self._settled = True
                self._deliver(event)

    def _deliver(self, event: RenderEvent | EngineUnhealthy) -> None:
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001  (the device thread must outlive a listener that has gone)
            _log.exception("a listener failed", extra={"job_id": self.request.job_id})
