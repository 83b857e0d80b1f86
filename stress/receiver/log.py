"""What a receiver remembers, shared by its own thread and those that ask or wait."""

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from uuid import uuid4

from stress.errors import CallbackWaitTimeoutError
from stress.receiver.entries import CallbackEntry, EntryKind, Refusal

MAX_REFUSALS = 1_000


@dataclass(frozen=True)
class _Waiter:
    count: int
    accepted_only: bool
    future: Future[tuple[CallbackEntry, ...]]


class CallbackLog:
    """The latest `max_entries` callbacks and the latest 1,000 refusals."""

    def __init__(self, max_entries: int) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries is {max_entries}. Pass 1 or more.")
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: deque[CallbackEntry] = deque()
        self._by_job: defaultdict[str, deque[CallbackEntry]] = defaultdict(deque)
        self._waiters: defaultdict[str, list[_Waiter]] = defaultdict(list)
        self._refusals: deque[Refusal] = deque(maxlen=MAX_REFUSALS)
        self._last_number = 0
        self._last_refusal = 0
        self._epoch = uuid4().hex

    @property
    def max_entries(self) -> int:
        """How many callbacks are remembered."""
        return self._max_entries

    @property
    def epoch(self) -> str:
        """Another one after `clear` and in every new log: what was read before is no longer so."""
        return self._epoch

    @property
    def last_number(self) -> int:
        """The number of the latest callback; 0 before the first."""
        return self._last_number

    @property
    def oldest_number(self) -> int:
        """The number of the oldest callback that is remembered, or of the next one."""
        with self._lock:
            return self._entries[0].number if self._entries else self._last_number + 1

    @property
    def total_refusals(self) -> int:
        """How many refusals there were, the forgotten ones included."""
        return self._last_refusal

    def record(self, entry: CallbackEntry) -> tuple[CallbackEntry, CallbackEntry | None]:
        """Keep `entry` with its number and kind and wake who waits; return it and the oldest if that was dropped."""
        with self._lock:
            self._last_number += 1
            kept = entry.model_copy(update={"kind": self._kind(entry), "number": self._last_number})
            dropped = self._keep(kept)
            self._wake(kept.job_id)
        return kept, dropped

    def refuse(self, refusal: Refusal) -> Refusal:
        """Keep `refusal` with its number and return it."""
        with self._lock:
            self._last_refusal += 1
            kept = refusal.model_copy(update={"number": self._last_refusal})
            self._refusals.append(kept)
        return kept

    def restore(self, entries: Iterable[CallbackEntry], refusals: Iterable[Refusal]) -> None:
        """Take in records of an earlier run as they are, in order; new ones are numbered on from them."""
        with self._lock:
            for entry in entries:
                self._keep(entry)
                self._last_number = max(self._last_number, entry.number)
            for refusal in refusals:
                self._refusals.append(refusal)
                self._last_refusal = max(self._last_refusal, refusal.number)

    def clear(self) -> tuple[CallbackEntry, ...]:
        """Forget every record and return the callbacks; those who wait go on waiting."""
        with self._lock:
            forgotten = tuple(self._entries)
            self._entries.clear()
            self._by_job.clear()
            self._refusals.clear()
            self._epoch = uuid4().hex
        return forgotten

    def entries(self, after: int = 0) -> tuple[CallbackEntry, ...]:
        """Return the callbacks with a number above `after`, in order of arrival."""
        with self._lock:
            newest_first = tuple(takewhile(lambda entry: entry.number > after, reversed(self._entries)))
        return newest_first[::-1]

    def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Return the job's callbacks in order of arrival."""
        with self._lock:
            return self._matching(job_id, accepted_only=False)

    def entry(self, number: int) -> CallbackEntry | None:
        """Return the callback with this number, if it is remembered."""
        found = self.entries(after=number - 1)[:1]
        return found[0] if found and found[0].number == number else None

    def refusals(self, after: int = 0) -> tuple[Refusal, ...]:
        """Return the refusals with a number above `after`, in order of arrival."""
        with self._lock:
            return tuple(refusal for refusal in self._refusals if refusal.number > after)

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

    def _keep(self, entry: CallbackEntry) -> CallbackEntry | None:
        self._entries.append(entry)
        self._by_job[entry.job_id].append(entry)
        return self._drop_oldest() if len(self._entries) > self._max_entries else None

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
        # Whoever lacks secret or key must not be able to make a genuine callback look like a duplicate.
        earlier = [e for e in self._by_job.get(entry.job_id, ()) if e.is_genuine]
        if entry.webhook_id is None:
            return EntryKind.UNIDENTIFIED if earlier else EntryKind.FIRST
        attempts = [e.webhook_attempt for e in earlier if e.webhook_id == entry.webhook_id]
        if not attempts:
            return EntryKind.FIRST
        return EntryKind.DUPLICATE if entry.webhook_attempt in attempts else EntryKind.REPEAT

    def _drop_oldest(self) -> CallbackEntry:
        oldest = self._entries.popleft()
        of_its_job = self._by_job[oldest.job_id]
        of_its_job.popleft()
        if not of_its_job:
            del self._by_job[oldest.job_id]
        return oldest

    def _too_late(self, job_id: str, count: int, timeout_s: float, accepted_only: bool) -> CallbackWaitTimeoutError:
        with self._lock:
            received = len(self._matching(job_id, accepted_only))
        return CallbackWaitTimeoutError(job_id, count, received, timeout_s)
