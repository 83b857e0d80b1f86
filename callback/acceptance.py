"""The beginning of a job: a submission becomes a row, or turns out to be one that came before."""

import math
from collections import Counter

import sqlalchemy as sa

from callback import job_rows
from callback.allowance import Allowance
from callback.board import Board, Entry
from callback.clock import Clock
from callback.committer import Run
from callback.config import TrackerConfig
from callback.errors import AllowanceUsed, IdempotencyKeyReused, JobIdInUse, QueueFull, Refusal
from callback.metrics import TrackerMetrics
from callback.records import JobView, NewJob
from callback.states import FINAL, JobState
from callback.store import Store
from observability.logs import get_logger

MAX_ALIASES = 100
"""Idempotency-Keys that are noted for one job beside its first: bounds what repeating one submission costs the store.
A repeat with yet another key is answered with the job like the others, and its key is forgotten."""

_log = get_logger("jobs")


class Acceptance:
    """Accepts submissions. `last_seq` is the highest queue number given so far."""

    def __init__(
        self, config: TrackerConfig, store: Store, run: Run, board: Board, clock: Clock, metrics: TrackerMetrics
    ) -> None:
        self._config = config
        self._insertion = job_rows.insertion(store)
        self._run = run
        self._board = board
        self._clock = clock
        self._metrics = metrics
        self._being_submitted: Counter[str] = Counter()
        a_minute = config.pixel_steps_per_minute_per_client
        self._allowance = Allowance(a_minute / 60, a_minute, clock.steady) if a_minute else None
        self.last_seq = 0

    async def submit(self, job: NewJob) -> JobView:
        """Accept the job, or return the one that the same submission made before.

        Raises `QueueFull`, `AllowanceUsed`, `JobIdInUse`, `IdempotencyKeyReused`.
        """
        refusal = self._refusal_for(job.owner)
        self.last_seq += 1
        seq, now = self.last_seq, self._clock.now()

        def work(tx: sa.Connection) -> tuple[JobView, bool]:
            if refusal is None and not _is_alias(tx, job) and job_rows.insert(self._insertion, tx, job, seq, now):
                return _fresh_view(job, seq, now), True
            if (earlier := _earlier_submission(tx, job)) is not None:
                return earlier, False
            if refusal is not None:
                raise refusal
            _free_the_id(tx, job, now)
            if not job_rows.insert(self._insertion, tx, job, seq, now):
                raise RuntimeError(f"Queue number {seq} is taken.")
            return _fresh_view(job, seq, now), True

        def show(accepted: tuple[JobView, bool]) -> JobView:
            view, fresh = accepted
            if fresh:
                if self._allowance is not None:
                    self._allowance.use(job.owner, job.pixel_steps)
                self._board.put(Entry(view, waiting_since=now, waits_from=self._clock.steady()))
                self._metrics.submitted(view.model)
                # At DEBUG, because a line costs a tenth of a quick job, and the line of its end has the same.
                _log.debug("job accepted", extra={"job_id": view.job_id, "key": view.key, "seq": seq})
            entry = self._board.get(view.key)
            # Of an open job memory knows more than its row.
            return entry.view if entry is not None else view

        self._being_submitted[job.owner] += 1
        try:
            accepted: JobView = await self._run(work, show)
        finally:
            self._being_submitted[job.owner] -= 1
            if not self._being_submitted[job.owner]:
                del self._being_submitted[job.owner]
        return accepted

    def _refusal_for(self, owner: str) -> Refusal | None:
        """Return why no more jobs of the owner are taken now; None if they are."""
        if len(self._board) + self._being_submitted.total() >= self._config.max_open_jobs:
            return QueueFull(
                f"{self._config.max_open_jobs} jobs are open, as many as this service takes. Try again later."
            )
        limit = self._config.max_open_jobs_per_client
        if limit is not None and self._board.open_of(owner) + self._being_submitted[owner] >= limit:
            return QueueFull(
                f"You have {limit} open jobs, as many as this service takes of one client. Try again when some have "
                "ended."
            )
        if self._allowance is not None and (wait_s := self._allowance.wait_s(owner)) > 0:
            allowed = self._config.pixel_steps_per_minute_per_client
            return AllowanceUsed(
                f"You have asked for more than this service renders for one client, {allowed} pixels x steps a minute. "
                f"Try again in {math.ceil(wait_s)} s.",
                wait_s,
            )
        return None


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


def _is_alias(tx: sa.Connection, job: NewJob) -> bool:
    # That a first key came before the insert finds out by itself.
    return job.idempotency_key is not None and job_rows.is_alias(tx, job.owner, job.idempotency_key)


def _earlier_submission(tx: sa.Connection, job: NewJob) -> JobView | None:
    """Return the job that this submission, or an equal one, has made before. Raises if an unequal one did.

    An equal one's Idempotency-Key is noted: whatever comes with it later is measured by the job that it was answered
    with.
    """
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
            raise JobIdInUse(
                f"The job id {job.job_id!r} belongs to a job with another body that has not ended yet. Use another id."
            )
        if job.idempotency_key is not None:
            _note_alias(tx, job.idempotency_key, namesake)
        return namesake
    return None


def _note_alias(tx: sa.Connection, idempotency_key: str, view: JobView) -> None:
    if job_rows.aliases(tx, view.key) < MAX_ALIASES:
        job_rows.add_alias(tx, view.owner, idempotency_key, view.key)


def _free_the_id(tx: sa.Connection, job: NewJob, now: float) -> None:
    """Let the new job have the id of a final one. Raises `JobIdInUse` while the old one's callback is under way."""
    namesake = job_rows.by_client_id(tx, job.owner, job.job_id)
    if namesake is None:
        return
    if namesake.delivery is not None and not namesake.delivery.final:
        raise JobIdInUse(f"The callback of the earlier job {job.job_id!r} is still being delivered. Use another id.")
    job_rows.supersede(tx, namesake.key, now)
