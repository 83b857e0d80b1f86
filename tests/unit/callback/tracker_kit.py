"""A job tracker inside the test's process: a clock that can be moved, a real folder of pictures, short commands."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from callback import job_rows
from callback.config import TrackerConfig
from callback.records import (
    PROTOCOL_VERSION,
    Answer,
    Callback,
    Cancel,
    Claim,
    ClaimJobs,
    Command,
    Cursor,
    DeliveryView,
    Finish,
    JobView,
    NewJob,
    Picture,
    Progress,
    Redeliver,
    Rejected,
    Release,
    Renew,
    Submit,
)
from callback.states import FINAL, JobState
from callback.store import Store
from callback.tracker import JobTracker

UNROUTED = "http://192.0.2.1/callback"
"""A receiver that does not exist: an address of documentation, which egress refuses before anything is sent."""
BOUND_S = 20.0
"""Longest wait for something that is going to happen; generous, because the machine may be busy."""
PNG = b"\x89PNG\r\n\x1a\n"

_numbers = count(1)


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: float = 1_900_000_000.0) -> None:
        self._now = start
        self._steady = 1000.0

    def now(self) -> float:
        return self._now

    def steady(self) -> float:
        return self._steady

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._steady += seconds

    def set_wall(self, seconds: float) -> None:
        """Move the wall clock alone, as an operator or a time server does."""
        self._now += seconds


class FolderPictures:
    """Pictures in a folder, checked when they are read (`callback.records.PictureStore`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def link(self, picture: Picture) -> str | None:
        return None

    def publish(self, key: str, content: bytes) -> Picture:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Picture(key, hashlib.sha256(content).hexdigest(), len(content), 64, 64)

    @property
    def identity(self) -> str:
        return str(self.folder)

    def read(self, picture: Picture) -> bytes:
        content = (self.folder / picture.key).read_bytes()
        if hashlib.sha256(content).hexdigest() != picture.sha256:
            raise ValueError("the picture was altered")
        return content

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    def remove_leftovers(self, older_than_s: float) -> int:
        horizon, removed = time.time() - older_than_s, 0
        for path in self.folder.rglob(".*.tmp"):
            if path.stat().st_mtime < horizon:
                path.unlink()
                removed += 1
        return removed

    def keys(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*.png")}


def new_job(job_id: str = "job-1", **fields: Any) -> NewJob:
    """Return a submission; `callback_url=...` gives it a callback."""
    url, secret = fields.pop("callback_url", None), fields.pop("secret", None)
    callback = Callback(url, secret, f"http://service/images/{job_id}.png") if url else None
    job = NewJob(
        key=f"{next(_numbers):032x}",
        owner="anyone",
        job_id=job_id,
        kind="text_to_image",
        model="sd",
        request_json='{"prompt": "a lighthouse"}',
        fingerprint="fingerprint",
        callback=callback,
    )
    return replace(job, **fields)


@dataclass
class Desk:
    """A tracker with what surrounds it. Commands raise nothing: a refusal is an answer."""

    tracker: JobTracker
    config: TrackerConfig
    clock: ManualClock
    pictures: FolderPictures
    holder: str = "dispatcher-1"

    # ---- commands ------------------------------------------------------------------------------------------------

    async def do(self, command: Command) -> Answer:
        (answer,) = await self.do_all(command)
        return answer

    async def do_all(self, *commands: Command) -> tuple[Answer, ...]:
        """Send the commands as one batch: they run side by side."""
        async with asyncio.timeout(BOUND_S):
            return await self.tracker.execute(PROTOCOL_VERSION, commands)

    async def submit(self, job_id: str = "job-1", **fields: Any) -> JobView:
        answer = await self.do(Submit(new_job(job_id, **fields)))
        assert isinstance(answer, JobView), answer
        return answer

    async def claim(self, limit: int = 1, *, model: str = "sd") -> tuple[Claim, ...]:
        answer = await self.do(self.claim_command(limit, model=model))
        assert isinstance(answer, tuple), answer
        return answer  # type: ignore[return-value]

    def claim_command(self, limit: int = 1, *, model: str = "sd") -> ClaimJobs:
        return ClaimJobs(self.holder, f"claim-{next(_numbers)}", model, limit)

    async def claim_one(self) -> Claim:
        (claim,) = await self.claim()
        return claim

    async def renew(self, claim: Claim, *, stage: str = "denoising", step: int = 1, started: bool = True) -> Answer:
        started_at = self.clock.now() if started else None
        progress = Progress(claim.key, claim.attempt, stage, step, 4, started_at)
        return await self.do(Renew(self.holder, (progress,)))

    async def complete(self, claim: Claim, content: bytes | None = None) -> Answer:
        return await self.do(self.completion(claim, content))

    def completion(self, claim: Claim, content: bytes | None = None) -> Finish:
        """Publish a picture for the attempt and return its report."""
        content = PNG + claim.artifact_key.encode() if content is None else content
        picture = self.pictures.publish(claim.artifact_key, content)
        return Finish(claim.key, claim.attempt, JobState.COMPLETED, picture, '{"seed": 1}')

    async def fail(self, claim: Claim, error: str = "It broke.") -> Answer:
        return await self.do(failure(claim, error))

    async def release(self, claim: Claim, *, blamed: bool = False) -> Answer:
        return await self.do(Release(claim.key, claim.attempt, blamed, "the replica ended"))

    async def cancel(self, job_id: str = "job-1") -> Answer:
        """Cancel the job that has the id now."""
        return await self.do(await self.cancellation(job_id))

    async def cancellation(self, job_id: str = "job-1") -> Cancel:
        """Look the id up, as the client does, and return what it then sends."""
        view = await self.tracker.get("anyone", job_id)
        return Cancel("anyone", job_id, view.key if view is not None else "unknown")

    async def redeliver(self, job_id: str = "job-1", *, request_id: str = "request-1") -> Answer:
        return await self.do(await self.redelivery(job_id, request_id=request_id))

    async def redelivery(self, job_id: str = "job-1", *, request_id: str = "request-1") -> Redeliver:
        """Look the id up, as the client does, and return what it then sends."""
        view = await self.tracker.get("anyone", job_id)
        return Redeliver("anyone", job_id, request_id, view.key if view is not None else "unknown")

    # ---- looking -------------------------------------------------------------------------------------------------

    async def view(self, job_id: str = "job-1") -> JobView:
        view = await self.tracker.get("anyone", job_id)
        assert view is not None
        return view

    async def until(self, condition: Callable[[JobView], object], job_id: str = "job-1") -> JobView:
        """Return the job's view as soon as the condition holds, woken by the change stream."""
        async with asyncio.timeout(BOUND_S):
            cursor = Cursor()
            while True:
                view = await self.tracker.get("anyone", job_id)
                if view is not None and condition(view):
                    return view
                cursor = (await self.tracker.changes(cursor, 1.0)).cursor

    async def until_settled(self, job_id: str = "job-1", *, attempts: int = 1) -> JobView:
        """Return the job's view once so many delivery attempts have settled."""
        return await self.until(lambda view: _settled_attempts(view) >= attempts, job_id)

    async def settled_delivery(self, job_id: str = "job-1", *, attempts: int = 1) -> DeliveryView:
        """Return the job's delivery once so many attempts have settled."""
        delivery = (await self.until_settled(job_id, attempts=attempts)).delivery
        assert delivery is not None
        return delivery

    def rows(self, statement: sa.Executable) -> list[dict[str, Any]]:
        """Query the store beside the tracker."""
        store = Store(self.config.store_url)
        try:
            with store.reading() as tx:
                return [dict(row) for row in tx.execute(statement).mappings()]
        finally:
            store.close()

    def stored(self, key: str) -> JobView:
        """Return the job as the store has it."""
        store = Store(self.config.store_url)
        try:
            with store.reading() as tx:
                view = job_rows.by_key(tx, key)
        finally:
            store.close()
        assert view is not None
        return view

    def memory_equals_store(self) -> bool:
        """Tell whether memory holds exactly the open jobs of the store in their states, and final ones as they are."""
        store = Store(self.config.store_url)
        finals = [view for view in self.tracker._board.finals._views.values() if view is not None]
        try:
            with store.reading() as tx:
                stored = {job.view.key: job for job in job_rows.open_jobs(tx)}
                for view in finals:
                    current = job_rows.by_client_id(tx, view.owner, view.job_id)
                    assert view == current
        finally:
            store.close()
        held = {entry.view.key: entry for entry in self.tracker._board}
        assert held.keys() == stored.keys()
        for key, entry in held.items():
            row = stored[key]
            assert _durable(entry.view) == _durable(row.view)
            assert (entry.holder, entry.claim_id, entry.waiting_since) == (row.holder, row.claim_id, row.waiting_since)
        views = [entry.view for entry in held.values()]
        queued = sorted(view.key for view in views if view.state is JobState.QUEUED)
        assert queued == sorted(key for queue in self.tracker._board._queues.values() for key in queue)
        assert self.tracker._board._open_by_owner == Counter(view.owner for view in views)
        return True


StartDesk = Callable[..., Awaitable[Desk]]


def failure(claim: Claim, error: str = "It broke.") -> Finish:
    return Finish(claim.key, claim.attempt, JobState.FAILED, error=error, error_code="render_failed")


def rejected(answer: Answer) -> str:
    """Return the code of a refusal."""
    assert isinstance(answer, Rejected), answer
    return answer.code


def is_final(view: JobView) -> bool:
    return view.state in FINAL


def _durable(view: JobView) -> JobView:
    # Progress lives in memory only.
    return replace(view, stage=None, step=0, steps=0, started_at=None)


def _settled_attempts(view: JobView) -> int:
    delivery = view.delivery
    if delivery is None or delivery.first_settled_at is None:
        return 0
    under_way = not delivery.final and delivery.next_attempt_at is None
    return delivery.attempts - under_way


async def crash(tracker: JobTracker) -> None:
    """End a tracker as kill -9 would: nothing that has not been committed will be, nothing more is sent."""
    if tracker._epoch >= 0:
        claims = tracker._lifecycle.claims._under_way.values()
        tasks = (*tracker._background, *tracker._courier._under_way.tasks(), *claims)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await tracker._courier.close()
        await tracker._committer.close()
    tracker._store.close()
