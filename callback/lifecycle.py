"""The life of a job: what each command does to its row, and what memory shows after the commit.

A command is decided inside the transaction, by the row: memory tells which rows to look at, never what may be done. (A
job's end is written by what memory shows, on condition that the row's state, attempt and wish to cancel are the same.)
"""

import asyncio
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.acceptance import Acceptance
from callback.board import Board, Entry
from callback.claims import Claims
from callback.clock import Clock
from callback.committer import Run
from callback.config import TrackerConfig
from callback.endings import CANCELLED, SHED, Deliveries, Ended, Ending, Endings
from callback.errors import (
    JobNotFound,
    NotCancellable,
    NotRedeliverable,
)
from callback.job_rows import OpenJob
from callback.metrics import TrackerMetrics
from callback.records import (
    Cancel,
    Finish,
    JobView,
    NewJob,
    Redeliver,
    Release,
    target,
)
from callback.states import FINAL, JobState
from callback.store import Store
from observability.logs import get_logger

MAX_CLAIMS = 1000
"""Claims of one job before it is given up, whoever is to blame. What waits for a device is bounded by the queue timeout
long before; this bounds what a cluster that loses its ingress replicas again and again spends on one job."""
ENDED_AT_ONCE = 256
"""Jobs whose lease or time has run out that are put into one transaction."""

_log = get_logger("jobs")


class Lifecycle:
    """Carries the commands out. `run` commits a unit of work (see `Committer.run`)."""

    def __init__(
        self,
        config: TrackerConfig,
        store: Store,
        run: Run,
        board: Board,
        deliveries: Deliveries,
        clock: Clock,
        metrics: TrackerMetrics,
    ) -> None:
        self._config = config
        self._store = store
        self._run = run
        self._board = board
        self._deliveries = deliveries
        self._clock = clock
        self._acceptance = Acceptance(config, store, run, board, clock, metrics)
        self._endings = Endings(config, board, deliveries, clock, metrics)
        self.claims = Claims(config, run, board, clock)

    async def recover(self) -> None:
        """Read the open jobs from the store. Running attempts go on if their dispatcher renews the lease in time."""

        def read(tx: sa.Connection) -> tuple[list[OpenJob], int]:
            # A store that can be read but not written has not recovered.
            self._store.beat(tx, self._clock.now())
            return job_rows.open_jobs(tx), job_rows.last_seq(tx)

        def show(found: tuple[list[OpenJob], int]) -> None:
            open_jobs, last_seq = found
            self._acceptance.last_seq = max(self._acceptance.last_seq, last_seq)
            now, steady = self._clock.now(), self._clock.steady()
            entries = []
            for job in open_jobs:
                known = self._board.get(job.view.key)
                entry = _entry_of(job, known)
                if known is not None and known.waiting_since == job.waiting_since:
                    entry.waits_from = known.waits_from
                else:
                    entry.waits_from = steady - max(0.0, now - job.waiting_since)
                entry.lease_until = steady + self._config.lease_s
                entries.append(entry)
            self._board.replace_all(entries)
            self.claims.recover(entries)

        await self._run(read, show)

    async def submit(self, job: NewJob) -> JobView:
        """Accept a job (see `Acceptance.submit`)."""
        return await self._acceptance.submit(job)

    def _latest(self, view: JobView) -> JobView:
        """Return what memory knows of the job: of an open one more than its row."""
        entry = self._board.get(view.key)
        return entry.view if entry is not None else view

    # ---- the end of an attempt --------------------------------------------------------------------------------------

    async def release(self, command: Release) -> bool:
        """Put a claimed job back into its place, or end it when it has been tried often enough."""
        return await self._give_back(command.key, command.attempt, blamed=command.blamed, reason=command.reason)

    async def _give_back(self, key: str, attempt: int, *, blamed: bool, reason: str) -> bool:
        entry = self._board.get(key)
        started_at = _started_at(entry, attempt)
        # A job whose rendering had begun has waited enough: its next wait has the whole limit again.
        waits_anew = entry is None or started_at is not None or not entry.heard
        waiting_since = self._clock.now() if entry is None or waits_anew else entry.waiting_since

        def work(tx: sa.Connection) -> Ended | JobView | None:
            view = job_rows.by_key(tx, key)
            if view is None or view.state is not JobState.PROCESSING or view.attempt != attempt:
                return view
            ending = self._last_ending(view, job_rows.blamed_attempts(tx, key) + int(blamed), reason)
            if ending is not None:
                return self._endings.write(tx, view, ending, started_at)
            job_rows.release(tx, key, attempt, blamed=blamed, waiting_since=waiting_since)
            return replace(view, state=JobState.QUEUED)

        def show(outcome: Ended | JobView | None) -> bool:
            if isinstance(outcome, Ended):
                return self._endings.show(outcome)
            if outcome is None or outcome.attempt != attempt or outcome.state is JobState.PROCESSING:
                return False
            if outcome.state is JobState.QUEUED:
                self._show_release(outcome, reason, waiting_since, waits_anew=waits_anew)
            return True

        answer: bool = await self._run(work, show)
        return answer

    def _last_ending(self, view: JobView, blamed_attempts: int, reason: str) -> Ending | None:
        """Return how a job that lost its attempt ends; None if it goes back to the queue."""
        if view.cancel_requested:
            return CANCELLED
        if blamed_attempts >= self._config.max_attempts:
            sentence = f"Rendering ended its replica {blamed_attempts} times ({reason}); the job is not tried again."
            return Ending(JobState.FAILED, "poisoned", sentence)
        if view.attempt >= MAX_CLAIMS:
            sentence = f"The job was begun {view.attempt} times and never finished ({reason})."
            return Ending(JobState.FAILED, "attempts_exhausted", sentence)
        return None

    def _show_release(self, view: JobView, reason: str, waiting_since: float, *, waits_anew: bool) -> None:
        entry = self._board.get(view.key)
        if entry is None or entry.view.state is not JobState.PROCESSING:
            return  # A repeated command: it is shown already.
        entry.holder = entry.claim_id = None
        entry.waiting_since = waiting_since
        if waits_anew:
            entry.waits_from = self._clock.steady()
        self._board.update(view.key, state=JobState.QUEUED, stage=None, step=0, steps=0, started_at=None)
        _log.warning("attempt ended", extra={"job_id": view.job_id, "attempt": view.attempt, "reason": reason})

    # ---- the end of a job -----------------------------------------------------------------------------------------

    async def finish(self, command: Finish) -> bool:
        """Record an attempt's outcome. Late reports of old attempts answer False and change nothing."""
        key, attempt = command.key, command.attempt
        entry = self._board.get(key)
        started_at = command.started_at or _started_at(entry, attempt)
        reported = Ending(command.state, command.error_code, command.error, _result_columns(command))

        def write(tx: sa.Connection, view: JobView | None) -> Ended | JobView | None:
            if view is None or view.state is not JobState.PROCESSING or view.attempt != attempt:
                return view
            # A cancel that came first was promised to the client, so the picture is not.
            cancelled = view.cancel_requested and command.state is JobState.COMPLETED
            return self._endings.write(tx, view, CANCELLED if cancelled else reported, started_at)

        known = entry.view if entry is not None else None

        def work(tx: sa.Connection) -> Ended | JobView | None:
            # Memory is read at no cost, and nearly always right; if it is not, nothing is written.
            ended = write(tx, known)
            return ended if isinstance(ended, Ended) else write(tx, job_rows.by_key(tx, key))

        def show(outcome: Ended | JobView | None) -> bool:
            if isinstance(outcome, Ended):
                return self._endings.show(outcome)
            if outcome is None or outcome.attempt != attempt:
                return False
            return outcome.state is command.state or outcome.error_code == CANCELLED.error_code

        answer: bool = await self._run(work, show)
        return answer

    async def expire(self) -> None:
        """Take back lost leases, and end jobs that waited too long or that nobody wants any more."""
        due = [work for entry in self._board if (work := self._overdue(entry)) is not None]
        for start in range(0, len(due), ENDED_AT_ONCE):
            outcomes = await asyncio.gather(
                *(self._expire_one(*work) for work in due[start : start + ENDED_AT_ONCE]), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

    def _overdue(self, entry: Entry) -> tuple[JobView, Ending | None] | None:
        """Return the job with how it ends, None instead of an ending if only its attempt does; None if all is well."""
        view, steady, limit_s = entry.view, self._clock.steady(), self._config.queue_timeout_s
        if view.state is JobState.PROCESSING and steady > entry.lease_until:
            return view, None
        if view.started_at is not None or not entry.heard:
            return None
        if self._config.shed_expired and view.expiry is not None and self._clock.now() > view.expiry:
            return view, SHED
        if steady - entry.waits_from > limit_s:
            sentence = f"The job waited longer than {limit_s:g} s for a replica. Submit it again later."
            return view, Ending(JobState.TIMEOUT, "queue_timeout", sentence)
        return None

    async def _expire_one(self, view: JobView, ending: Ending | None) -> None:
        if ending is None:
            reason = "its dispatcher stopped renewing the lease"
            # One lost lease is an ingress replica's death. Many are a job that takes whole nodes down.
            blamed = view.started_at is not None and view.attempt >= 2 * self._config.max_attempts
            await self._give_back(view.key, view.attempt, blamed=blamed, reason=reason)
            return

        def work(tx: sa.Connection) -> Ended | JobView | None:
            return self._endings.write(tx, view, ending, None)

        await self._run(work, lambda outcome: isinstance(outcome, Ended) and self._endings.show(outcome))

    async def cancel(self, command: Cancel) -> JobView:
        """End a queued job now; ask the replica of a running one to stop. Raises `JobNotFound`, `NotCancellable`."""

        def work(tx: sa.Connection) -> Ended | JobView | None:
            view = _found(tx, command)
            if view.state is JobState.QUEUED:
                return self._endings.write(tx, view, CANCELLED, None)
            if view.state is JobState.PROCESSING:
                job_rows.request_cancel(tx, view.key)
            elif view.error_code != CANCELLED.error_code:
                raise NotCancellable(f"The job {command.job_id!r} has ended already ({view.state}).")
            return view

        def show(outcome: Ended | JobView) -> JobView:
            if isinstance(outcome, Ended):
                self._endings.show(outcome)
                return outcome.view
            if outcome.state is JobState.PROCESSING and not self._latest(outcome).cancel_requested:
                self._board.update(outcome.key, cancel_requested=True)
            return self._latest(outcome)

        view: JobView = await self._run(work, show)
        return view

    async def redeliver(self, command: Redeliver) -> JobView:
        """Send a final job's callback again, under its webhook id. Raises `JobNotFound`, `NotRedeliverable`."""

        def work(tx: sa.Connection) -> JobView:
            view, now = _found(tx, command), self._clock.now()
            _check_redeliverable(view, now)
            give_up_at = self._endings.give_up_at(view, now)
            if not delivery_rows.redeliver(tx, view.key, command.request_id, now=now, give_up_at=give_up_at):
                current = job_rows.by_client_id(tx, view.owner, view.job_id)
                if current is not None and current.key != view.key:
                    raise NotRedeliverable(f"The id {view.job_id!r} belongs to a later job by now.")
                raise NotRedeliverable(
                    f"An attempt to deliver the callback of the job {command.job_id!r} is under way. "
                    "Ask again when its outcome is known."
                )
            return job_rows.by_key(tx, view.key) or view

        def show(view: JobView) -> JobView:
            self._board.publish(view)
            self._deliveries.wake()
            return view

        changed: JobView = await self._run(work, show)
        return changed


def _entry_of(job: OpenJob, known: Entry | None) -> Entry:
    view, running = job.view, job.view.state is JobState.PROCESSING
    heard = not running
    if running and known is not None and _same_attempt(known.view, view):
        # Progress is kept in memory only.
        seen = known.view
        view = replace(view, stage=seen.stage, step=seen.step, steps=seen.steps, started_at=seen.started_at)
        heard = known.heard
    return Entry(view, job.waiting_since, holder=job.holder, claim_id=job.claim_id, heard=heard)


def _same_attempt(one: JobView, other: JobView) -> bool:
    return one.attempt == other.attempt and one.state is other.state


def _started_at(entry: Entry | None, attempt: int) -> float | None:
    """Return when the device began with this attempt, as far as its dispatcher has told."""
    return entry.view.started_at if entry is not None and entry.view.attempt == attempt else None


def _result_columns(command: Finish) -> dict[str, Any]:
    columns: dict[str, Any] = {"result_json": command.result_json}
    if (picture := command.picture) is not None:
        columns |= {
            "picture_key": picture.key,
            "picture_sha256": picture.sha256,
            "picture_size_bytes": picture.size_bytes,
            "picture_width": picture.width,
            "picture_height": picture.height,
        }
    return columns


def _found(tx: sa.Connection, command: Cancel | Redeliver) -> JobView:
    """Return the job that the command is for. Raises `JobNotFound`."""
    key = target(command)
    view = job_rows.by_key(tx, key) if key else job_rows.by_client_id(tx, command.owner, command.job_id)
    if view is None or view.owner != command.owner:
        raise JobNotFound(f"There is no job {command.job_id!r}.")
    return view


def _check_redeliverable(view: JobView, now: float) -> None:
    """Raise `NotRedeliverable` if there is nothing that may be sent."""
    if view.state not in FINAL:
        raise NotRedeliverable(f"The job {view.job_id!r} has not ended yet; its callback follows when it has.")
    if not view.has_callback:
        raise NotRedeliverable(f"The job {view.job_id!r} was submitted without a callback_url.")
    if view.expiry is not None and now > view.expiry:
        raise NotRedeliverable("The job's expiry has passed: its callback may not be sent any more.")
    if view.picture_deleted:
        raise NotRedeliverable(f"The picture of the job {view.job_id!r} was removed by retention.")
