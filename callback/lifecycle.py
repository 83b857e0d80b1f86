"""The life of a job: what each command does to its row, and what memory shows after the commit."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.board import Board, Entry
from callback.clock import Clock
from callback.config import TrackerConfig
from callback.delivery_rows import Parcel
from callback.errors import (
    IdempotencyKeyReused,
    JobIdInUse,
    JobNotFound,
    NotCancellable,
    NotRedeliverable,
    QueueFull,
)
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

Run = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]

_log = get_logger("jobs")


class Deliveries(Protocol):
    """What a job's life needs of the courier."""

    def begin(self, parcel: Parcel) -> None:
        """Send the first attempt of a delivery now."""
        ...

    def wake(self) -> None:
        """Look for due deliveries now."""
        ...


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

        def read(tx: sa.Connection) -> tuple[list[tuple[JobView, str | None, str | None, int]], int]:
            return job_rows.open_jobs(tx), job_rows.last_seq(tx)

        rows, last_seq = await self._run(read)
        lease_until = self._clock.now() + self._config.lease_s
        known = {entry.view.key: entry.view for entry in self._board}
        entries = []
        for view, holder, claim_id, blamed in rows:
            before = known.get(view.key)
            if before is not None and before.attempt == view.attempt and view.state is JobState.PROCESSING:
                # Progress is kept in memory only.
                view = replace(  # noqa: PLW2901
                    view, stage=before.stage, step=before.step, steps=before.steps, started_at=before.started_at
                )
            entries.append(Entry(view, blamed, holder, claim_id, lease_until))
        self._seq = max(self._seq, last_seq)
        self._board.replace_all(entries)

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
                raise JobIdInUse(f"The job id {job.job_id!r} is in use.")
            return _fresh_view(job, seq, now), True

        self._being_submitted += 1
        try:
            view, fresh = await self._run(work)
        finally:
            self._being_submitted -= 1
        if fresh:
            self._board.put(Entry(view))
            self._metrics.submitted(view.model)
            _log.info("job accepted", extra={"job_id": view.job_id, "key": view.key, "seq": seq})
        entry = self._board.get(view.key)
        shown: JobView = entry.view if entry is not None else view
        return shown

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
        repeated = [e for e in self._board if e.claim_id == command.claim_id and e.holder == command.holder]
        if repeated:
            return tuple(_claim_of(entry.view) for entry in repeated)
        taken = self._board.take_queued(command.model, command.limit)
        attempts = {entry.view.key: entry.view.attempt for entry in taken}

        def work(tx: sa.Connection) -> list[bool]:
            return [job_rows.claim(tx, k, a, command.holder, command.claim_id) for k, a in attempts.items()]

        try:
            won = await self._run(work) if taken else []
        except BaseException:
            for entry in taken:
                self._board.update(entry)
            raise
        claims = []
        for entry, ok in zip(taken, won, strict=True):
            if not ok:
                continue  # It was cancelled while we asked; its own command has told the readers.
            entry.holder, entry.claim_id = command.holder, command.claim_id
            entry.lease_until = self._clock.now() + self._config.lease_s
            self._board.update(entry, state=JobState.PROCESSING, attempt=entry.view.attempt + 1)
            claims.append(_claim_of(entry.view))
        return tuple(claims)

    async def renew(self, command: Renew) -> tuple[str, ...]:
        """Extend leases and show progress; returns the keys that this holder has lost. Leases live in memory only."""
        lost = []
        until = self._clock.now() + self._config.lease_s
        for progress in command.progress:
            entry = self._board.get(progress.key)
            if entry is None or entry.view.attempt != progress.attempt or entry.view.state is not JobState.PROCESSING:
                lost.append(progress.key)
                continue
            entry.lease_until = until
            shown = {
                "stage": progress.stage,
                "step": progress.step,
                "steps": progress.steps,
                "started_at": progress.started_at,
            }
            if any(getattr(entry.view, name) != value for name, value in shown.items()):
                self._board.update(entry, **shown)
        return tuple(lost)

    async def release(self, command: Release) -> bool:
        """Put a claimed job back into its place, or end it when it has been tried often enough."""
        entry = self._board.get(command.key)
        if entry is None or entry.view.attempt != command.attempt or entry.view.state is not JobState.PROCESSING:
            return False
        return await self._give_back(entry, blamed=command.blamed, reason=command.reason)

    async def _give_back(self, entry: Entry, *, blamed: bool, reason: str) -> bool:
        view, blame = entry.view, entry.blamed + int(blamed)
        _log.warning("attempt ended", extra={"job_id": view.job_id, "attempt": view.attempt, "reason": reason})
        if view.cancel_requested:
            return await self._end(entry, JobState.FAILED, "cancelled", "The client cancelled the job.")
        if blame >= self._config.max_attempts:
            sentence = f"Rendering ended its replica {blame} times ({reason}); the job is not tried again."
            return await self._end(entry, JobState.FAILED, "poisoned", sentence)
        if view.attempt >= MAX_CLAIMS:
            sentence = f"The job was begun {view.attempt} times and never finished ({reason})."
            return await self._end(entry, JobState.FAILED, "attempts_exhausted", sentence)
        if not await self._run(lambda tx: job_rows.release(tx, view.key, view.attempt, blamed=blamed)):
            return False
        entry.holder = entry.claim_id = None
        entry.blamed = blame
        self._board.update(entry, state=JobState.QUEUED, stage=None, step=0, steps=0, started_at=None)
        return True

    # ---- the end of a job -----------------------------------------------------------------------------------------

    async def finish(self, command: Finish) -> bool:
        """Record an attempt's outcome. Late reports of old attempts answer False and change nothing."""
        entry = self._board.get(command.key)
        if entry is None or entry.view.state is not JobState.PROCESSING or entry.view.attempt != command.attempt:
            view = await self._run(lambda tx: job_rows.by_key(tx, command.key))
            return view is not None and view.state in FINAL and view.attempt == command.attempt
        if command.state is JobState.COMPLETED and entry.view.cancel_requested:
            return await self._end(entry, JobState.FAILED, "cancelled", "The client cancelled the job.")
        picture = command.picture
        values: dict[str, Any] = {"result_json": command.result_json}
        if picture is not None:
            values |= {
                "picture_key": picture.key,
                "picture_sha256": picture.sha256,
                "picture_size_bytes": picture.size_bytes,
                "picture_width": picture.width,
                "picture_height": picture.height,
            }
        if await self._end(entry, command.state, command.error_code, command.error, values):
            return True
        if command.state is JobState.COMPLETED and self._board.get(command.key) is entry:
            # A cancel was committed first; it was promised to the client, so the picture is not.
            return await self._end(entry, JobState.FAILED, "cancelled", "The client cancelled the job.")
        return False

    async def _end(
        self,
        entry: Entry,
        state: JobState,
        error_code: str | None,
        error: str | None,
        extra: dict[str, Any] | None = None,
    ) -> bool:
        """Commit the final state together with its delivery; False if something else ended or moved the job first."""
        before, now = entry.view, self._clock.now()
        values = {
            "state": state,
            "error": error,
            "error_code": error_code,
            "started_at": before.started_at,
            "finished_at": now,
            **(extra or {}),
        }
        expired = before.expiry is not None and now > before.expiry
        give_up_at = before.expiry if before.expiry is not None else now + self._config.callback_horizon_s

        def work(tx: sa.Connection) -> tuple[JobView, Parcel | None] | None:
            if not job_rows.finish(tx, before.key, before.state, before.attempt, values):
                return None
            parcel = None
            if before.has_callback:
                delivery_rows.create(
                    tx,
                    before.key,
                    state,
                    now=now,
                    settles_by=now + self._config.callback_timeout_s,
                    give_up_at=give_up_at,
                    expired=expired,
                )
                parcel = None if expired else delivery_rows.parcel(tx, before.key)
            view = job_rows.by_key(tx, before.key)
            assert view is not None  # noqa: S101 - it was updated in this transaction
            return view, parcel

        ended = await self._run(work)
        if ended is None:
            return False
        view, parcel = ended
        self._board.drop(view)
        if parcel is not None:
            self._deliveries.begin(parcel)
        self._metrics.ended(view)
        fields = {"job_id": view.job_id, "key": view.key, "state": state, "error_code": error_code}
        _log.info("job ended", extra=fields | {"attempt": view.attempt})
        return True

    async def expire(self) -> None:
        """Take back lost leases, and end jobs that waited too long or that nobody wants any more."""
        now = self._clock.now()
        for entry in self._board:
            view = entry.view
            if view.state is JobState.PROCESSING and now > entry.lease_until:
                await self._give_back(entry, blamed=False, reason="its dispatcher stopped renewing the lease")
            elif view.started_at is not None:
                continue
            elif self._config.shed_expired and view.expiry is not None and now > view.expiry:
                await self._end(entry, JobState.FAILED, "expired", "The job's expiry passed before it was rendered.")
            elif now - view.queued_at > self._config.queue_timeout_s:
                sentence = f"The job waited longer than {self._config.queue_timeout_s:g} s for a replica."
                await self._end(entry, JobState.TIMEOUT, "queue_timeout", sentence)

    async def cancel(self, command: Cancel) -> JobView:
        """End a queued job now; ask the replica of a running one to stop. Raises `JobNotFound`, `NotCancellable`."""
        for _ in range(20):
            entry = self._board.find(command.owner, command.job_id)
            if entry is None:
                break
            key = entry.view.key
            if entry.view.state is JobState.QUEUED:
                if await self._end(entry, JobState.FAILED, "cancelled", "The client cancelled the job."):
                    break
                await asyncio.sleep(0.01)  # A claim was committed first; let it reach memory and look again.
            elif entry.view.cancel_requested or await self._run(partial(job_rows.request_cancel, key=key)):
                self._board.update(entry, cancel_requested=True)
                return entry.view
            else:
                break  # It ended meanwhile.
        view = await self._find(command.owner, command.job_id)
        if view.error_code != "cancelled":
            raise NotCancellable(f"The job {command.job_id!r} has ended already ({view.state}).")
        return view

    async def redeliver(self, command: Redeliver) -> JobView:
        """Send a final job's callback again, under its webhook id. Raises `JobNotFound`, `NotRedeliverable`."""
        view = await self._find(command.owner, command.job_id)
        now = self._clock.now()
        if view.state not in FINAL:
            raise NotRedeliverable(f"The job {command.job_id!r} has not ended yet; its callback follows when it has.")
        if not view.has_callback:
            raise NotRedeliverable(f"The job {command.job_id!r} was submitted without a callback_url.")
        if view.expiry is not None and now > view.expiry:
            raise NotRedeliverable("The job's expiry has passed: its callback may not be sent any more.")
        give_up_at = view.expiry if view.expiry is not None else now + self._config.callback_horizon_s

        def work(tx: sa.Connection) -> JobView | None:
            delivery_rows.redeliver(tx, view.key, command.request_id, now=now, give_up_at=give_up_at)
            return job_rows.by_key(tx, view.key)

        changed: JobView = await self._run(work)
        self._board.publish(changed)
        self._deliveries.wake()
        return changed

    async def _find(self, owner: str, job_id: str) -> JobView:
        view: JobView | None = await self._run(lambda tx: job_rows.by_client_id(tx, owner, job_id))
        if view is None:
            raise JobNotFound(f"There is no job {job_id!r}.")
        return view


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
