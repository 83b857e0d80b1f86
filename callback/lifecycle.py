"""The life of a job: what each command does to its row, and what memory shows after the commit.

A command is decided inside the transaction, by the row: memory tells which rows to look at, never what may be done.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.board import Board, Entry
from callback.clock import Clock
from callback.committer import Run
from callback.config import TrackerConfig
from callback.delivery_rows import Parcel
from callback.egress import receiver_of
from callback.errors import (
    IdempotencyKeyReused,
    JobIdInUse,
    JobNotFound,
    NotCancellable,
    NotRedeliverable,
    QueueFull,
)
from callback.job_rows import OpenJob
from callback.metrics import TrackerMetrics
from callback.records import (
    Cancel,
    Claim,
    ClaimJobs,
    Finish,
    JobView,
    NewJob,
    Redeliver,
    Release,
    Renew,
    artifact_key,
)
from callback.schema import jobs
from callback.states import FINAL, JobState
from callback.store import Store
from observability.logs import get_logger

MAX_CLAIMS = 1000
"""Claims of one job before it is given up, whoever is to blame. What waits for a device is bounded by the queue timeout
long before; this bounds what a cluster that loses its ingress replicas again and again spends on one job."""
ENDED_AT_ONCE = 256
"""Jobs whose lease or time has run out that are put into one transaction."""

_log = get_logger("jobs")


class Deliveries(Protocol):
    """What a job's life needs of the courier."""

    def begin(self, parcel: Parcel) -> None:
        """Send the first attempt of a delivery now."""
        ...

    def wake(self) -> None:
        """Look for due deliveries now."""
        ...


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a job shall end. `values`: further columns."""

    state: JobState
    error_code: str | None
    error: str | None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A job that was ended by the present transaction, and what is to be sent of it."""

    view: JobView
    parcel: Parcel | None


_CANCELLED = _Ending(JobState.FAILED, "cancelled", "The client cancelled the job.")
_SHED = _Ending(JobState.FAILED, "expired", "The job's expiry passed before it was rendered.")


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
        self._insert = store.insert(jobs)
        self._run = run
        self._board = board
        self._deliveries = deliveries
        self._clock = clock
        self._metrics = metrics
        self._seq = 0
        self._being_submitted = 0
        self._claims_under_way: dict[str, asyncio.Task[tuple[Claim, ...]]] = {}

    async def recover(self) -> None:
        """Read the open jobs from the store. Running attempts go on if their dispatcher renews the lease in time."""

        def read(tx: sa.Connection) -> tuple[list[OpenJob], int]:
            return job_rows.open_jobs(tx), job_rows.last_seq(tx)

        def show(found: tuple[list[OpenJob], int]) -> None:
            open_jobs, last_seq = found
            self._seq = max(self._seq, last_seq)
            known = {entry.view.key: entry.view for entry in self._board}
            lease_until = self._clock.now() + self._config.lease_s
            self._board.replace_all([_entry_of(job, known.get(job.view.key), lease_until) for job in open_jobs])

        await self._run(read, show)

    # ---- submit ---------------------------------------------------------------------------------------------------

    async def submit(self, job: NewJob) -> JobView:
        """Accept the job, or return the one that the same submission made before.

        Raises `QueueFull`, `JobIdInUse`, `IdempotencyKeyReused`.
        """
        full = len(self._board) + self._being_submitted >= self._config.max_open_jobs
        self._seq += 1
        seq, now = self._seq, self._clock.now()

        def work(tx: sa.Connection) -> tuple[JobView, bool]:
            if not full and job_rows.insert(self._insert, tx, job, seq, now):
                return _fresh_view(job, seq, now), True
            if (earlier := _earlier_submission(tx, job)) is not None:
                return earlier, False
            if full:
                raise QueueFull(f"{self._config.max_open_jobs} jobs are open, as many as this service takes.")
            _free_the_id(tx, job, now)
            if not job_rows.insert(self._insert, tx, job, seq, now):
                raise RuntimeError(f"Queue number {seq} is taken.")
            return _fresh_view(job, seq, now), True

        def show(accepted: tuple[JobView, bool]) -> JobView:
            view, fresh = accepted
            if fresh:
                self._board.put(Entry(view, waiting_since=now))
                self._metrics.submitted(view.model)
                _log.info("job accepted", extra={"job_id": view.job_id, "key": view.key, "seq": seq})
            return self._latest(view)

        self._being_submitted += 1
        try:
            accepted: JobView = await self._run(work, show)
        finally:
            self._being_submitted -= 1
        return accepted

    def _latest(self, view: JobView) -> JobView:
        """Return what memory knows of the job: of an open one more than its row."""
        entry = self._board.get(view.key)
        return entry.view if entry is not None else view

    # ---- claim, renew, release ------------------------------------------------------------------------------------

    async def claim(self, command: ClaimJobs) -> tuple[Claim, ...]:
        """Hand out the first queued jobs of a model. The same `claim_id` gets the same jobs again."""
        under_way = self._claims_under_way.get(command.claim_id)
        if under_way is None:
            under_way = asyncio.ensure_future(self._claim(command))
            self._claims_under_way[command.claim_id] = under_way
            under_way.add_done_callback(lambda _: self._claims_under_way.pop(command.claim_id))
        return await asyncio.shield(under_way)

    async def _claim(self, command: ClaimJobs) -> tuple[Claim, ...]:
        repeated = [e.view for e in self._board if e.claim_id == command.claim_id and e.holder == command.holder]
        if repeated:
            return tuple(_claim_of(view) for view in repeated)
        taken = self._board.take_queued(command.model, command.limit)
        if not taken:
            return ()

        def work(tx: sa.Connection) -> list[bool]:
            return [job_rows.claim(tx, v.key, v.attempt, command.holder, command.claim_id) for v in taken]

        def show(won: list[bool]) -> tuple[Claim, ...]:
            # What was not won has been cancelled meanwhile; its own command has told the readers.
            shown = (self._show_claim(view, command) for view, ok in zip(taken, won, strict=True) if ok)
            return tuple(claim for claim in shown if claim is not None)

        try:
            claims: tuple[Claim, ...] = await self._run(work, show)
        except BaseException:
            for view in taken:
                self._board.requeue(view.key)
            raise
        return claims

    def _show_claim(self, view: JobView, command: ClaimJobs) -> Claim | None:
        entry = self._board.update(view.key, state=JobState.PROCESSING, attempt=view.attempt + 1)
        if entry is None:
            return None
        entry.holder, entry.claim_id, entry.heard = command.holder, command.claim_id, True
        entry.lease_until = self._clock.now() + self._config.lease_s
        return _claim_of(entry.view)

    async def renew(self, command: Renew) -> tuple[str, ...]:
        """Extend leases and show progress; returns the keys that this holder has lost. Leases live in memory only."""
        lost = []
        until = self._clock.now() + self._config.lease_s
        for progress in command.progress:
            entry = self._board.get(progress.key)
            if entry is None or entry.view.attempt != progress.attempt or entry.view.state is not JobState.PROCESSING:
                lost.append(progress.key)
                continue
            entry.lease_until, entry.heard = until, True
            shown = {
                "stage": progress.stage,
                "step": progress.step,
                "steps": progress.steps,
                "started_at": progress.started_at,
            }
            if any(getattr(entry.view, name) != value for name, value in shown.items()):
                self._board.update(progress.key, **shown)
        return tuple(lost)

    def extend_leases(self, by_s: float) -> None:
        """Give every lease more time, because nobody could be heard for `by_s` seconds."""
        for entry in self._board:
            entry.lease_until += by_s

    async def release(self, command: Release) -> bool:
        """Put a claimed job back into its place, or end it when it has been tried often enough."""
        return await self._give_back(command.key, command.attempt, blamed=command.blamed, reason=command.reason)

    async def _give_back(self, key: str, attempt: int, *, blamed: bool, reason: str) -> bool:
        entry = self._board.get(key)
        started_at, now = _started_at(entry, attempt), self._clock.now()
        # A job whose rendering had begun has waited enough: its next wait has the whole limit again.
        waiting_since = now if entry is None or started_at is not None or not entry.heard else entry.waiting_since

        def work(tx: sa.Connection) -> _Ended | JobView | None:
            view = job_rows.by_key(tx, key)
            if view is None or view.state is not JobState.PROCESSING or view.attempt != attempt:
                return view
            ending = self._last_ending(view, job_rows.blamed_attempts(tx, key) + int(blamed), reason)
            if ending is not None:
                return self._end(tx, view, ending, started_at, now)
            job_rows.release(tx, key, attempt, blamed=blamed, waiting_since=waiting_since)
            return replace(view, state=JobState.QUEUED)

        def show(outcome: _Ended | JobView | None) -> bool:
            if isinstance(outcome, _Ended):
                return self._show_end(outcome)
            if outcome is None or outcome.attempt != attempt or outcome.state is JobState.PROCESSING:
                return False
            if outcome.state is JobState.QUEUED:
                self._show_release(outcome, reason, waiting_since)
            return True

        answer: bool = await self._run(work, show)
        return answer

    def _last_ending(self, view: JobView, blamed_attempts: int, reason: str) -> _Ending | None:
        """Return how a job that lost its attempt ends; None if it goes back to the queue."""
        if view.cancel_requested:
            return _CANCELLED
        if blamed_attempts >= self._config.max_attempts:
            sentence = f"Rendering ended its replica {blamed_attempts} times ({reason}); the job is not tried again."
            return _Ending(JobState.FAILED, "poisoned", sentence)
        if view.attempt >= MAX_CLAIMS:
            sentence = f"The job was begun {view.attempt} times and never finished ({reason})."
            return _Ending(JobState.FAILED, "attempts_exhausted", sentence)
        return None

    def _show_release(self, view: JobView, reason: str, waiting_since: float) -> None:
        entry = self._board.get(view.key)
        if entry is None or entry.view.state is not JobState.PROCESSING:
            return  # A repeated command: it is shown already.
        entry.holder = entry.claim_id = None
        entry.waiting_since = waiting_since
        self._board.update(view.key, state=JobState.QUEUED, stage=None, step=0, steps=0, started_at=None)
        _log.warning("attempt ended", extra={"job_id": view.job_id, "attempt": view.attempt, "reason": reason})

    # ---- the end of a job -----------------------------------------------------------------------------------------

    async def finish(self, command: Finish) -> bool:
        """Record an attempt's outcome. Late reports of old attempts answer False and change nothing."""
        key, attempt, now = command.key, command.attempt, self._clock.now()
        started_at = command.started_at or _started_at(self._board.get(key), attempt)
        reported = _Ending(command.state, command.error_code, command.error, _result_columns(command))

        def work(tx: sa.Connection) -> _Ended | JobView | None:
            view = job_rows.by_key(tx, key)
            if view is None or view.state is not JobState.PROCESSING or view.attempt != attempt:
                return view
            # A cancel that came first was promised to the client, so the picture is not.
            cancelled = view.cancel_requested and command.state is JobState.COMPLETED
            return self._end(tx, view, _CANCELLED if cancelled else reported, started_at, now)

        def show(outcome: _Ended | JobView | None) -> bool:
            if isinstance(outcome, _Ended):
                return self._show_end(outcome)
            if outcome is None or outcome.attempt != attempt:
                return False
            return outcome.state is command.state or outcome.error_code == _CANCELLED.error_code

        answer: bool = await self._run(work, show)
        return answer

    def _end(
        self, tx: sa.Connection, before: JobView, ending: _Ending, started_at: float | None, now: float
    ) -> _Ended | JobView | None:
        """Write the final state together with its delivery (design invariant I6)."""
        values = {
            "state": ending.state,
            "error": ending.error,
            "error_code": ending.error_code,
            "started_at": started_at,
            "finished_at": now,
            **ending.values,
        }
        if not job_rows.finish(tx, before.key, before.state, before.attempt, values):
            return before
        parcel = None
        if before.callback_url is not None:
            expired = before.expiry is not None and now > before.expiry
            delivery_rows.create(
                tx,
                before.key,
                receiver_of(before.callback_url),
                ending.state,
                now=now,
                settles_by=now + self._config.callback_timeout_s,
                give_up_at=self._give_up_at(before, now),
                expired=expired,
            )
            parcel = None if expired else delivery_rows.parcel(tx, before.key)
        view = job_rows.by_key(tx, before.key)
        assert view is not None  # noqa: S101 - it was updated in this transaction
        return _Ended(view, parcel)

    def _give_up_at(self, view: JobView, now: float) -> float:
        """Return until when the callback is tried. A far expiry is no reason to keep a job beyond its retention."""
        if view.expiry is None:
            return now + self._config.callback_horizon_s
        return min(view.expiry, now + max(self._config.callback_horizon_s, self._config.retention_s))

    def _show_end(self, ended: _Ended) -> bool:
        view = ended.view
        self._board.drop(view)
        if ended.parcel is not None:
            self._deliveries.begin(ended.parcel)
        self._metrics.ended(view)
        fields = {"job_id": view.job_id, "key": view.key, "state": view.state, "error_code": view.error_code}
        _log.info("job ended", extra=fields | {"attempt": view.attempt})
        return True

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

    def _overdue(self, entry: Entry) -> tuple[JobView, _Ending | None] | None:
        """Return the job with how it ends, None instead of an ending if only its attempt does; None if all is well."""
        view, now, limit_s = entry.view, self._clock.now(), self._config.queue_timeout_s
        if view.state is JobState.PROCESSING and now > entry.lease_until:
            return view, None
        if view.started_at is not None or not entry.heard:
            return None
        if self._config.shed_expired and view.expiry is not None and now > view.expiry:
            return view, _SHED
        if now - entry.waiting_since > limit_s:
            sentence = f"The job waited longer than {limit_s:g} s for a replica."
            return view, _Ending(JobState.TIMEOUT, "queue_timeout", sentence)
        return None

    async def _expire_one(self, view: JobView, ending: _Ending | None) -> None:
        if ending is None:
            reason = "its dispatcher stopped renewing the lease"
            await self._give_back(view.key, view.attempt, blamed=False, reason=reason)
            return
        now = self._clock.now()

        def work(tx: sa.Connection) -> _Ended | JobView | None:
            return self._end(tx, view, ending, None, now)

        await self._run(work, lambda outcome: isinstance(outcome, _Ended) and self._show_end(outcome))

    async def cancel(self, command: Cancel) -> JobView:
        """End a queued job now; ask the replica of a running one to stop. Raises `JobNotFound`, `NotCancellable`."""
        now = self._clock.now()

        def work(tx: sa.Connection) -> _Ended | JobView | None:
            view = _current(tx, command.owner, command.job_id)
            if view.state is JobState.QUEUED:
                return self._end(tx, view, _CANCELLED, None, now)
            if view.state is JobState.PROCESSING:
                job_rows.request_cancel(tx, view.key)
            elif view.error_code != _CANCELLED.error_code:
                raise NotCancellable(f"The job {command.job_id!r} has ended already ({view.state}).")
            return view

        def show(outcome: _Ended | JobView) -> JobView:
            if isinstance(outcome, _Ended):
                self._show_end(outcome)
                return outcome.view
            if outcome.state is JobState.PROCESSING and not self._latest(outcome).cancel_requested:
                self._board.update(outcome.key, cancel_requested=True)
            return self._latest(outcome)

        view: JobView = await self._run(work, show)
        return view

    async def redeliver(self, command: Redeliver) -> JobView:
        """Send a final job's callback again, under its webhook id. Raises `JobNotFound`, `NotRedeliverable`."""
        now = self._clock.now()

        def work(tx: sa.Connection) -> JobView:
            view = _current(tx, command.owner, command.job_id)
            _check_redeliverable(view, now)
            give_up_at = self._give_up_at(view, now)
            delivery_rows.redeliver(tx, view.key, command.request_id, now=now, give_up_at=give_up_at)
            return job_rows.by_key(tx, view.key) or view

        def show(view: JobView) -> JobView:
            self._board.publish(view)
            self._deliveries.wake()
            return view

        changed: JobView = await self._run(work, show)
        return changed


def _entry_of(job: OpenJob, known: JobView | None, lease_until: float) -> Entry:
    view, running = job.view, job.view.state is JobState.PROCESSING
    heard = not running
    if running and known is not None and known.attempt == view.attempt and known.state is JobState.PROCESSING:
        # Progress is kept in memory only.
        view = replace(view, stage=known.stage, step=known.step, steps=known.steps, started_at=known.started_at)
        heard = True
    return Entry(view, job.waiting_since, job.holder, job.claim_id, lease_until, heard)


def _fresh_view(job: NewJob, seq: int, now: float) -> JobView:
    return JobView(
        key=job.key,
        owner=job.owner,
        job_id=job.job_id,
        kind=job.kind,
        model=job.model,
        state=JobState.QUEUED,
        seq=seq,
        attempt=0,
        request_json=job.request_json,
        fingerprint=job.fingerprint,
        queued_at=now,
        has_callback=job.callback is not None,
        callback_url=job.callback.url if job.callback else None,
        callback_secret_provided=job.callback is not None and job.callback.secret is not None,
        expiry=job.expiry,
    )


def _claim_of(view: JobView) -> Claim:
    key = artifact_key(view.key, view.attempt)
    return Claim(view.key, view.job_id, view.attempt, view.model, view.request_json, key)


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


def _current(tx: sa.Connection, owner: str, job_id: str) -> JobView:
    view = job_rows.by_client_id(tx, owner, job_id)
    if view is None:
        raise JobNotFound(f"There is no job {job_id!r}.")
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


def _earlier_submission(tx: sa.Connection, job: NewJob) -> JobView | None:
    """Return the job that this submission, or an equal one, has made before. Raises if an unequal one did."""
    if (repeat := job_rows.by_key(tx, job.key)) is not None:
        return repeat
    if job.idempotency_key is not None:
        replay = job_rows.by_idempotency_key(tx, job.owner, job.idempotency_key)
        if replay is not None:
            if replay.fingerprint != job.fingerprint:
                raise IdempotencyKeyReused("This Idempotency-Key came before with another body. Use a new key.")
            return replay
    namesake = job_rows.by_client_id(tx, job.owner, job.job_id)
    if namesake is not None and namesake.state not in FINAL:
        if namesake.fingerprint != job.fingerprint:
            raise JobIdInUse(f"The job id {job.job_id!r} belongs to a job with another body that has not ended yet.")
        return namesake
    return None


def _free_the_id(tx: sa.Connection, job: NewJob, now: float) -> None:
    """Let the new job have the id of a final one. Raises `JobIdInUse` while the old one's callback is under way."""
    namesake = job_rows.by_client_id(tx, job.owner, job.job_id)
    if namesake is None:
        return
    if namesake.delivery is not None and not namesake.delivery.final:
        raise JobIdInUse(f"The callback of the earlier job {job.job_id!r} is still being delivered. Use another id.")
    job_rows.supersede(tx, namesake.key, now)
