"""What this ingress replica knows of the open jobs, kept fresh by one change stream.

Polls, long polls and queue positions of open jobs are answered from here, without a call to the tracker: as the stream
has told them, some 50 ms ago. A final state is never answered from memory: the id may have been given to a new job by
another replica a moment ago.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from sortedcontainers import SortedDict

from callback.client import TrackerClient
from callback.errors import TrackerError
from callback.records import Cursor, JobView
from callback.states import FINAL, JobState
from observability.logs import get_logger
from serve_app.recent import RecentKeys
from serve_app.supervision import wait_for_event

CHANGES_WAIT_S = 2.0
"""How long a call for changes waits in the tracker: also how soon a silent tracker is noticed."""
GATHER_S = 0.05
"""Rest after each answer: under load it brings what has changed meanwhile at once, instead of one change at a time."""
PAUSE_WITHOUT_TRACKER_S = 0.2
ENDED_HERE_FOR_S = 60.0
"""The change stream has told of an end by then, and of nothing before it any more."""

_log = get_logger("mirror")


@dataclass(eq=False, slots=True)
class _Watch:
    """A long poll: the latest view of its job. `overtaken` when the stream may have told a later one before."""

    view: JobView
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    overtaken: bool = False


class Mirror:
    """A read-only copy of the tracker's open jobs.

    `on_change` is called with every view that comes in, `on_reset` when the stream begins anew with another tracker.
    """

    def __init__(
        self,
        client: TrackerClient,
        on_change: Callable[[JobView], None] = lambda _: None,
        on_reset: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._on_change = on_change
        self._on_reset = on_reset
        self._open: dict[str, JobView] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ended_here = RecentKeys(ENDED_HERE_FOR_S)
        self._waiting: dict[str, dict[str, SortedDict[int, str]]] = defaultdict(dict)
        self._processing: dict[str, set[str]] = defaultdict(set)
        self._watches: defaultdict[str, set[_Watch]] = defaultdict(set)
        self._cursor = Cursor()

    async def follow(self) -> bool:
        """Read the change stream once; after a tracker's death, the successor's. There is always more to come."""
        try:
            changes = await self._client.changes(self._cursor, CHANGES_WAIT_S)
        except TrackerError as error:
            _log.warning("no changes from the tracker", extra={"cause": str(error)})
            await asyncio.sleep(PAUSE_WITHOUT_TRACKER_S)
            return True
        if changes.reset:
            self._start_afresh()
            self._on_reset()
        for view in changes.views:
            self._apply(view)
        self._cursor = changes.cursor
        if changes.views:
            await asyncio.sleep(GATHER_S)
        return True

    def _start_afresh(self) -> None:
        self._open.clear()
        self._keys.clear()
        self._waiting.clear()
        self._processing.clear()
        for watches in self._watches.values():
            for watch in watches:
                watch.overtaken = True
                watch.changed.set()

    def _apply(self, view: JobView) -> None:
        if view.key in self._ended_here and view.state not in FINAL:
            return  # Told late: whoever was answered that it had ended must not hear otherwise.
        identity = (view.owner, view.job_id)
        if view.state in FINAL:
            self._open.pop(view.key, None)
            if self._keys.get(identity) == view.key:
                del self._keys[identity]
        else:
            self._open[view.key] = view
            self._name(identity, view)
        if view.state is JobState.PROCESSING:
            self._processing[view.model].add(view.key)
        else:
            self._processing[view.model].discard(view.key)
        self._line_up(view)
        for watch in self._watches.get(view.key, ()):
            watch.view = view
            watch.changed.set()
        self._on_change(view)

    def _line_up(self, view: JobView) -> None:
        owners = self._waiting[view.model]
        if view.state is JobState.QUEUED or (view.state is JobState.PROCESSING and view.started_at is None):
            # Not `setdefault`: it would make one for every change.
            if view.owner not in owners:
                owners[view.owner] = SortedDict()
            owners[view.owner][view.seq] = view.key
        elif view.owner in owners:
            owners[view.owner].pop(view.seq, None)
            if not owners[view.owner]:
                del owners[view.owner]

    def _name(self, identity: tuple[str, str], view: JobView) -> None:
        # What an earlier job of the id was is told late sometimes.
        holder = self._open.get(self._keys.get(identity, ""))
        if holder is None or holder.seq <= view.seq:
            self._keys[identity] = view.key

    def accepted(self, view: JobView) -> None:
        """Let the id lead to the job that was just accepted, if it still leads to an earlier one that has ended."""
        identity = (view.owner, view.job_id)
        holder = self._open.get(self._keys.get(identity, ""))
        if holder is not None and holder.seq < view.seq:
            self._open[view.key] = view
            self._keys[identity] = view.key

    def ended(self, view: JobView) -> None:
        """Let a job that a command of ours has ended be open no more, before the stream tells of it."""
        self._ended_here.add(view.key)
        self._apply(view)

    async def find(self, owner: str, job_id: str) -> JobView | None:
        """Return the current job with the client's id; the tracker is asked for all but open jobs.

        Raises `Unavailable` if it has to be asked and does not answer.
        """
        key = self._keys.get((owner, job_id))
        return self._open[key] if key is not None else await self._client.get(owner, job_id)

    async def wait_until_settled(self, view: JobView, wait_s: float) -> JobView:
        """Return the job's view once its final state may be shown, or as it is known after `wait_s` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        # A view that the tracker was asked for may be older than what the stream has told meanwhile, and last.
        watch = _Watch(self._open.get(view.key, view), overtaken=view.key not in self._open)
        self._watches[view.key].add(watch)
        try:
            while True:
                watch.changed.clear()
                if watch.overtaken and not watch.view.settled(time.time()):
                    await self._catch_up(watch)
                now, left_s = time.time(), deadline - loop.time()
                if watch.view.settled(now) or left_s <= 0:
                    return watch.view
                delivery = watch.view.delivery
                # A final state may be shown from some moment on without any further change.
                bound_s = max(0.0, delivery.settles_by - now) if delivery else left_s
                if watch.overtaken:
                    bound_s = min(bound_s, CHANGES_WAIT_S)
                await wait_for_event(watch.changed, min(left_s, bound_s))
        finally:
            self._watches[view.key].discard(watch)
            if not self._watches[view.key]:
                del self._watches[view.key]

    async def _catch_up(self, watch: _Watch) -> None:
        watch.overtaken = False
        asked_of = watch.view
        try:
            found = await self._client.get(asked_of.owner, asked_of.job_id)
        except TrackerError:
            watch.overtaken = True  # The tracker is still coming up; the wait goes on, and asks again.
            return
        # The stream may have told more while we asked.
        if found is not None and found.key == asked_of.key and watch.view is asked_of:
            watch.view = found

    def position(self, view: JobView) -> int | None:
        """Return the job's place among those of its model that wait for a device, from 1; None once it is rendered.

        Owners take turns (`callback.fair_queue`): of another owner's jobs as many come before it as of its own, and
        perhaps one more. Whose turn comes first only the tracker knows; taken is whose job was accepted first.
        """
        if view.state in FINAL or view.started_at is not None:
            return None
        owners = self._waiting[view.model]
        own = owners.get(view.owner)
        ahead: int = own.bisect_left(view.seq) if own is not None else 0
        place = ahead + 1
        for owner, theirs in owners.items():
            if owner != view.owner:
                place += min(len(theirs), ahead)
                place += len(theirs) > ahead and theirs.peekitem(ahead)[0] < view.seq
        return place

    def processing(self, model: str) -> Set[str]:
        """Return the keys of the model's jobs that are claimed, by all ingress replicas together."""
        return self._processing[model]

    def is_cancelled(self, key: str) -> bool:
        """Tell whether the client wants the open job to stop."""
        view = self._open.get(key)
        return view is not None and view.cancel_requested

    def has_queued(self, model: str) -> bool:
        """Tell whether jobs of the model can be claimed."""
        return any(
            self._open[key].state is JobState.QUEUED for line in self._waiting[model].values() for key in line.values()
        )
