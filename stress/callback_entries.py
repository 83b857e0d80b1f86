"""What the receiver remembers of the callbacks that it was sent."""

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_serializer

from stress.errors import CallbackWaitTimeoutError


class EntryKind(StrEnum):
    """How a callback relates to the earlier ones of its delivery.

    A REPEAT carries a known `webhook-id` with a new attempt number; a DUPLICATE carries both again.
    UNIDENTIFIED is a further callback for a job without a `webhook-id`: nobody can tell which it is.
    """

    FIRST = "first"
    REPEAT = "repeat"
    DUPLICATE = "duplicate"
    UNIDENTIFIED = "unidentified"


class CallbackEntry(BaseModel):
    """One callback as it arrived.

    `secret_ok` is None on a receiver without a secret. `answered_status` is None where the connection was
    cut instead. `saved_path` names the job's latest picture; `sha256` and `image_size` (bytes) are this one's.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    status: str
    completed_at: str
    received_at: datetime
    image_url: str | None = None
    provided_secret: str | None = None
    secret_ok: bool | None = None
    has_image: bool = False
    error: str | None = None
    image_size: int | None = None
    saved_path: Path | None = None
    sha256: str | None = None
    webhook_id: str | None = None
    webhook_attempt: int | None = None
    webhook_timestamp: str | None = None
    webhook_signature: str | None = None
    kind: EntryKind = EntryKind.FIRST
    answered_status: int | None = None

    @property
    def was_accepted(self) -> bool:
        """Whether the sender was answered with success."""
        return self.answered_status is not None and 200 <= self.answered_status < 300

    @field_serializer("received_at")
    def _with_utc_offset(self, moment: datetime) -> str:
        # The protocol writes +00:00; pydantic's Z is not read by Python before 3.11.
        return moment.isoformat()


class CallbackList(BaseModel):
    """The answer of `GET /callbacks`, in order of arrival."""

    callbacks: tuple[CallbackEntry, ...]


@dataclass(frozen=True)
class _Waiter:
    count: int
    accepted_only: bool
    future: Future[tuple[CallbackEntry, ...]]


class CallbackLog:
    """The latest `max_entries` callbacks, shared by the receiver's thread and those that ask or wait."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: deque[CallbackEntry] = deque()
        self._by_job: defaultdict[str, deque[CallbackEntry]] = defaultdict(deque)
        self._waiters: defaultdict[str, list[_Waiter]] = defaultdict(list)

    def record(self, entry: CallbackEntry) -> CallbackEntry:
        """Keep `entry` with the kind it turns out to be, drop the oldest beyond the bound, wake who waits."""
        with self._lock:
            kept = entry.model_copy(update={"kind": self._kind(entry)})
            self._entries.append(kept)
            self._by_job[kept.job_id].append(kept)
            if len(self._entries) > self._max_entries:
                self._drop_oldest()
            self._wake(kept.job_id)
        return kept

    def clear(self) -> tuple[CallbackEntry, ...]:
        """Forget every entry and return them; those who wait go on waiting."""
        with self._lock:
            forgotten = tuple(self._entries)
            self._entries.clear()
            self._by_job.clear()
        return forgotten

    def entries(self) -> tuple[CallbackEntry, ...]:
        """Return every entry in order of arrival."""
        with self._lock:
            return tuple(self._entries)

    def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Return the job's entries in order of arrival."""
        with self._lock:
            return self._matching(job_id, accepted_only=False)

    def wait_for(self, job_id: str, count: int, *, timeout_s: float, accepted_only: bool) -> tuple[CallbackEntry, ...]:
        """Block until the job has `count` entries and return them all."""
        with self._waiting(job_id, count, accepted_only) as future:
            try:
                return future.result(timeout_s)
            except TimeoutError as error:
                raise self._too_late(job_id, count, timeout_s, accepted_only) from error

    async def wait_for_async(
        self, job_id: str, count: int, *, timeout_s: float, accepted_only: bool
    ) -> tuple[CallbackEntry, ...]:
        """Wait, without blocking the loop, until the job has `count` entries and return them all."""
        with self._waiting(job_id, count, accepted_only) as future:
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.wrap_future(future)
            except TimeoutError as error:
                raise self._too_late(job_id, count, timeout_s, accepted_only) from error

    @contextmanager
    def _waiting(self, job_id: str, count: int, accepted_only: bool) -> Iterator[Future[tuple[CallbackEntry, ...]]]:
        waiter = _Waiter(count, accepted_only, Future())
        with self._lock:
            self._waiters[job_id].append(waiter)
            self._wake(job_id)
        try:
            yield waiter.future
        finally:
            with self._lock:
                self._forget(job_id, waiter)

    def _wake(self, job_id: str) -> None:
        for waiter in tuple(self._waiters.get(job_id, ())):
            matching = self._matching(job_id, waiter.accepted_only)
            if len(matching) < waiter.count:
                continue
            self._forget(job_id, waiter)
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_result(matching)

    def _forget(self, job_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(job_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiters.pop(job_id, None)

    def _matching(self, job_id: str, accepted_only: bool) -> tuple[CallbackEntry, ...]:
        entries = self._by_job.get(job_id, ())
        return tuple(entry for entry in entries if entry.was_accepted or not accepted_only)

    def _kind(self, entry: CallbackEntry) -> EntryKind:
        # Whoever lacks the secret must not be able to make a genuine callback look like a duplicate.
        earlier = [e for e in self._by_job.get(entry.job_id, ()) if e.secret_ok is not False]
        if entry.webhook_id is None:
            return EntryKind.UNIDENTIFIED if earlier else EntryKind.FIRST
        attempts = [e.webhook_attempt for e in earlier if e.webhook_id == entry.webhook_id]
        if not attempts:
            return EntryKind.FIRST
        return EntryKind.DUPLICATE if entry.webhook_attempt in attempts else EntryKind.REPEAT

    def _drop_oldest(self) -> None:
        oldest = self._entries.popleft()
        of_its_job = self._by_job[oldest.job_id]
        of_its_job.popleft()
        if not of_its_job:
            del self._by_job[oldest.job_id]

    def _too_late(self, job_id: str, count: int, timeout_s: float, accepted_only: bool) -> CallbackWaitTimeoutError:
        with self._lock:
            received = len(self._matching(job_id, accepted_only))
        return CallbackWaitTimeoutError(job_id, count, received, timeout_s)
