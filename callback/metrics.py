"""Counters, gauges and histograms of the job memory, through Ray's metrics; docs/operations.md lists them."""

from ray.util.metrics import Counter, Gauge, Histogram

from callback.board import Board
from callback.delivery_rows import Outcome
from callback.records import JobView
from callback.states import JobState

_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800]


class TrackerMetrics:
    """Jobs by state, queue depth, age of the queue's head, seconds from submit to the end."""

    def __init__(self) -> None:
        self._submitted = Counter("darkroom_jobs_submitted_total", "Jobs accepted.", ("model",))
        self._ended = Counter("darkroom_jobs_ended_total", "Jobs ended, by state.", ("model", "state", "error_code"))
        self._open = Gauge("darkroom_jobs_open", "Open jobs by state.", ("model", "state"))
        self._head_age = Gauge("darkroom_queue_head_age_seconds", "Age of the next queued job.", ("model",))
        self._total = Histogram(
            "darkroom_job_seconds", "Seconds from submit to the final state.", boundaries=_SECONDS, tag_keys=("model",)
        )

    def submitted(self, model: str) -> None:
        """Count an accepted job."""
        self._submitted.inc(1, {"model": model})

    def ended(self, view: JobView) -> None:
        """Count a job that reached its final state."""
        self._ended.inc(1, {"model": view.model, "state": view.state, "error_code": view.error_code or ""})
        if view.finished_at is not None:
            self._total.observe(max(0.0, view.finished_at - view.queued_at), {"model": view.model})

    def observe(self, board: Board, now: float) -> None:
        """Set the gauges from what is open now."""
        queued = board.queued()
        processing = dict.fromkeys(queued, 0)
        for entry in board:
            if entry.view.state is JobState.PROCESSING:
                processing[entry.view.model] += 1
        for model, count in queued.items():
            head = board.head(model)
            self._open.set(count, {"model": model, "state": JobState.QUEUED})
            self._open.set(processing[model], {"model": model, "state": JobState.PROCESSING})
            self._head_age.set(max(0.0, now - head.view.queued_at) if head else 0.0, {"model": model})


class DeliveryMetrics:
    """Callback attempts by outcome, and how long they took."""

    def __init__(self) -> None:
        self._attempts = Counter("darkroom_callback_attempts_total", "Callback attempts by outcome.", ("outcome",))
        self._seconds = Histogram(
            "darkroom_callback_seconds", "Seconds an attempt took.", boundaries=_SECONDS, tag_keys=("outcome",)
        )

    def settled(self, outcome: Outcome) -> None:
        """Count an attempt."""
        self._attempts.inc(1, {"outcome": outcome.state})
        self._seconds.observe(max(0.0, outcome.settled_at - outcome.attempted_at), {"outcome": outcome.state})
