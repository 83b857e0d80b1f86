"""The open jobs in memory, and the change stream that readers follow."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from callback.fair_queue import FairQueue
from callback.finals import RecentFinals
from callback.records import Changes, Cursor, JobView
from callback.states import FINAL, OPEN, JobState

CHANGES_KEPT = 8192
"""A reader further behind than this gets the whole of the open jobs anew."""


@dataclass(slots=True)
class Entry:
    """An open job: what readers see, and what only the tracker knows.

    `lease_until` (set while it is processing) and `waits_from` (for the limit of the queue) are moments of the steady
    clock; `waiting_since` is the latter for the row, of the wall clock. `heard` is false from a recovery to the first
    report of its dispatcher: until then nobody knows whether the attempt has begun.
    """

    view: JobView
    waiting_since: float
    waits_from: float = 0.0
    holder: str | None = None
    claim_id: str | None = None
    lease_until: float = 0.0
    heard: bool = True


class Board:
    """All open jobs, and those that ended last (`finals`).

    It holds what has been committed and nothing else; `put` and `drop` follow a commit.
    """

    def __init__(self, epoch: int) -> None:
        self.finals = RecentFinals()
        self._entries: dict[str, Entry] = {}
        self._keys_by_id: dict[tuple[str, str], str] = {}
        self._queues: dict[str, FairQueue] = {}
        self._open_by_owner: Counter[str] = Counter()
        self._changes: deque[tuple[int, JobView]] = deque(maxlen=CHANGES_KEPT)
        self._cursor = Cursor(epoch, 0)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, key: str) -> Entry | None:
        """Return the open job with our key."""
        return self._entries.get(key)

    def find(self, owner: str, job_id: str) -> Entry | None:
        """Return the open job with the client's id."""
        key = self._keys_by_id.get((owner, job_id))
        return self._entries[key] if key is not None else None

    def known(self, owner: str, job_id: str, *, finals: bool = True) -> JobView | None:
        """Return the current job with the client's id, open or (with `finals`) final, if it is in memory."""
        entry = self.find(owner, job_id)
        if entry is not None:
            return entry.view
        return self.finals.get(owner, job_id) if finals else None

    def replace_all(self, entries: Iterable[Entry]) -> None:
        """Start afresh from the store. Readers are told everything again."""
        self._entries.clear()
        self._keys_by_id.clear()
        self._queues.clear()
        self._open_by_owner.clear()
        self._changes.clear()
        self.finals.clear()
        # A gap in the numbering makes every reader's cursor too old, so that each gets the whole.
        self._cursor = replace(self._cursor, version=self._cursor.version + CHANGES_KEPT)
        self._changed.set()
        for entry in entries:
            self.put(entry)

    def put(self, entry: Entry) -> None:
        """Add or update an open job and tell the readers."""
        view = entry.view
        if view.key not in self._entries:
            self._open_by_owner[view.owner] += 1
        self._entries[view.key] = entry
        self._keys_by_id[view.owner, view.job_id] = view.key
        self.finals.free(view.owner, view.job_id)
        queue = self._queues.get(view.model)
        if queue is None:
            queue = self._queues[view.model] = FairQueue()
        if view.state is JobState.QUEUED:
            queue.put(view.owner, view.seq, view.key)
        else:
            queue.discard(view.owner, view.seq)
        self.publish(view)

    def drop(self, view: JobView) -> None:
        """Remove a job that has reached a final state and tell the readers."""
        if self._entries.pop(view.key, None) is not None:
            self._keys_by_id.pop((view.owner, view.job_id), None)
            self._queues[view.model].discard(view.owner, view.seq)
            self._open_by_owner[view.owner] -= 1
            if not self._open_by_owner[view.owner]:
                del self._open_by_owner[view.owner]
            self.finals.add(view)
        self.publish(view)

    def update(self, key: str, **changes: Any) -> Entry | None:
        """Change fields of an open job's view and tell the readers; nothing happens if the job has ended meanwhile."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.view = replace(entry.view, **changes)
            self.put(entry)
        return entry

    def take_queued(self, model: str, limit: int) -> list[JobView]:
        """Remove the next `limit` jobs of the model from the queue; `requeue` brings them back in their old place."""
        queue = self._queues.get(model)
        return [self._entries[key].view for key in queue.take(limit)] if queue is not None else []

    def requeue(self, key: str) -> None:
        """Put a job that was taken back into its place, if it still waits."""
        entry = self._entries.get(key)
        if entry is not None and entry.view.state is JobState.QUEUED:
            self._queues[entry.view.model].put(entry.view.owner, entry.view.seq, key)

    def queued(self) -> dict[str, int]:
        """Return the number of queued jobs by model."""
        return {model: len(queue) for model, queue in self._queues.items()}

    def head(self, model: str) -> Entry | None:
        """Return the model's queued job that was accepted first."""
        queue = self._queues.get(model)
        key = queue.oldest() if queue is not None else None
        return self._entries[key] if key is not None else None

    def open_of(self, owner: str) -> int:
        """Return how many open jobs the owner has."""
        return self._open_by_owner[owner]

    # ---- the change stream --------------------------------------------------------------------------------------

    def publish(self, view: JobView) -> None:
        """Tell the readers that a job, open or final, looks like this now."""
        self._cursor = replace(self._cursor, version=self._cursor.version + 1)
        self._changes.append((self._cursor.version, view))
        if view.state in FINAL:
            self.finals.update(view)
        self._changed.set()

    async def changes(self, cursor: Cursor, wait_s: float) -> Changes:
        """Return the latest view of each job that changed since `cursor`, waiting up to `wait_s` for one."""
        if cursor == self._cursor:
            self._changed.clear()
            # What comes while the wait is being given up is told all the same.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
        oldest = self._changes[0][0] if self._changes else self._cursor.version + 1
        if cursor.epoch != self._cursor.epoch or cursor.version + 1 < oldest:
            views = tuple(entry.view for entry in self._entries.values() if entry.view.state in OPEN)
            return Changes(self._cursor, views, reset=True)
        latest: dict[str, JobView] = {}
        for version, view in reversed(self._changes):
            if version <= cursor.version:
                break
            latest.setdefault(view.key, view)
        return Changes(self._cursor, tuple(reversed(latest.values())), reset=False)
