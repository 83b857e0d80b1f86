"""The end of a job: its final state and its delivery, in one transaction."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.board import Board
from callback.clock import Clock
from callback.config import TrackerConfig
from callback.delivery_rows import Parcel
from callback.egress import receiver_of
from callback.metrics import TrackerMetrics
from callback.records import JobView
from callback.states import JobState
from observability.logs import get_logger

_log = get_logger("jobs")


class Deliveries(Protocol):
    """What a job's life needs of the courier."""

    def begin(self, parcel: Parcel, view: JobView) -> None:
        """Send the first attempt of the job's delivery now."""
        ...

    def wake(self) -> None:
        """Look for due deliveries now."""
        ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job shall end. `values`: further columns."""

    state: JobState
    error_code: str | None
    error: str | None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that was ended by the present transaction, and what is to be sent of it."""

    view: JobView
    parcel: Parcel | None


CANCELLED = Ending(JobState.FAILED, "cancelled", "The client cancelled the job.")
SHED = Ending(JobState.FAILED, "expired", "The job's expiry passed before it was rendered.")


class Endings:
    """Ends jobs for whoever decides that they have ended."""

    def __init__(
        self, config: TrackerConfig, board: Board, deliveries: Deliveries, clock: Clock, metrics: TrackerMetrics
    ) -> None:
        self._config = config
        self._board = board
        self._deliveries = deliveries
        self._clock = clock
        self._metrics = metrics

    def write(
        self, tx: sa.Connection, before: JobView, ending: Ending, started_at: float | None
    ) -> Ended | JobView | None:
        """Write the final state together with its delivery (design invariant I6).

        Returns the job as it was found if something else ended or moved it first.
        """
        # Not the moment of the command: it may have waited for a store that stood still, and the first attempt, whose
        # time begins here, would look as if nobody knew any more what became of it.
        now = self._clock.now()
        values = {
            "state": ending.state,
            "error": ending.error,
            "error_code": ending.error_code,
            "started_at": started_at,
            "finished_at": now,
            **ending.values,
        }
        job = job_rows.finish(tx, before.key, before.state, before.attempt, values)
        if job is None:
            return before
        if job.callback is None:
            return Ended(job.view, None)
        receiver, give_up_at = receiver_of(job.callback.url), self.give_up_at(before, now)
        expired = before.expiry is not None and now > before.expiry
        delivery = delivery_rows.create(
            tx,
            before.key,
            receiver,
            ending.state,
            now=now,
            settles_by=now + self._config.callback_timeout_s,
            give_up_at=give_up_at,
            expired=expired,
        )
        view = replace(job.view, delivery=delivery)
        parcel = None if expired else delivery_rows.first_parcel(view, job.callback, receiver, give_up_at)
        return Ended(view, parcel)

    def give_up_at(self, view: JobView, now: float) -> float:
        """Return until when the callback is tried. A far expiry is no reason to keep a job beyond its retention."""
        if view.expiry is None:
            return now + self._config.callback_horizon_s
        return min(view.expiry, now + max(self._config.callback_horizon_s, self._config.retention_s))

    def show(self, ended: Ended) -> bool:
        """Let memory, readers and the courier know what was committed. Answers True."""
        view = ended.view
        self._board.drop(view)
        if ended.parcel is not None:
            self._deliveries.begin(ended.parcel, view)
        self._metrics.ended(view)
        _log.info("job ended", extra=_told(view))
        return True


def _told(view: JobView) -> dict[str, Any]:
    """Return what the log says of a job: one line, with its whole life."""
    assert view.finished_at is not None  # noqa: S101 - written with every final state
    return {
        "job_id": view.job_id,
        "key": view.key,
        "seq": view.seq,
        "model": view.model,
        "attempt": view.attempt,
        "state": view.state,
        "error_code": view.error_code,
        # The clock may have been set back.
        "seconds": round(max(0.0, view.finished_at - view.queued_at), 3),
    }
