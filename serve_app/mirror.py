"""What this ingress replica knows: all open jobs and the latest final ones, kept fresh by one change stream.

Polls, long polls and queue positions are answered from here, without a call to the tracker.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable

from sortedcontainers import SortedDict

from callback.client import TrackerClient
from callback.errors import TrackerError
from callback.records import Cursor, JobView
from callback.states import FINAL, JobState
from observability.logs import get_logger

CHANGES_WAIT_S = 2.0
"""How long a call for changes waits in the tracker: also how soon a silent tracker is noticed."""
FINALS_KEPT = 4096
FRESH_S = 2 * CHANGES_WAIT_S + 1.0

_log = get_logger("mirror")


class Mirror:
    """A read-only copy of the tracker's open jobs. `on_change` is called with every view that comes in."""

    def __init__(self, client: TrackerClient, on_change: Callable[[JobView], None] | None = None) -> None:
        self._client = client
        self._on_change = on_change or (lambda _: None)
        self._views: dict[str, JobView] = {}
        self._finals: OrderedDict[str, None] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}
        self._waiting: dict[str, SortedDict[int, str]] = defaultdict(SortedDict)
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._cursor = Cursor()
        self._heard_at = float("-inf")

    @property
    def fresh(self) -> bool:
        """Whether the change stream is alive, so that what is not known here must be asked for."""
        return time.monotonic() - self._heard_at < FRESH_S

    async def follow_for_ever(self) -> None:
        """Read the change stream; after a tracker's death, the successor's."""
        while True:
            try:
                changes = await self._client.changes(self._cursor, CHANGES_WAIT_S)
            except TrackerError as error:
                _log.warning("no changes from the tracker", extra={"cause": str(error)})
                await asyncio.sleep(0.2)
                continue
            if changes.reset:
                self._start_afresh()
            for view in changes.views:
                self._apply(view)
            self._cursor, self._heard_at = changes.cursor, time.monotonic()

    def _start_afresh(self) -> None:
        watched = tuple(self._watchers)
        self._views.clear()
        self._finals.clear()
        self._keys.clear()
        self._waiting.clear()
        for key in watched:
            self._wake(key)

    def learn(self, view: JobView) -> None:
        """Take in a view that came as an answer, unless the stream has told of the job already (it may be newer)."""
        if view.key not in self._views:
            self._apply(view)

    def _apply(self, view: JobView) -> None:
        self._views[view.key] = view
        identity = (view.owner, view.job_id)
        known = self._views.get(self._keys.get(identity, ""))
        if known is None or known.seq <= view.seq:
            self._keys[identity] = view.key
        waiting = self._waiting[view.model]
        if view.state is JobState.QUEUED or (view.state is JobState.PROCESSING and view.started_at is None):
            waiting[view.seq] = view.key
        else:
            waiting.pop(view.seq, None)
        if view.state in FINAL:
            self._keep_final(view)
        self._wake(view.key)
        self._on_change(view)

    def _keep_final(self, view: JobView) -> None:
        self._finals[view.key] = None
        self._finals.move_to_end(view.key)
        if len(self._finals) > FINALS_KEPT:
            old = self._views.pop(self._finals.popitem(last=False)[0])
            if self._keys.get((old.owner, old.job_id)) == old.key:
                del self._keys[old.owner, old.job_id]

    def _wake(self, key: str) -> None:
        for event in self._watchers.get(key, ()):
            event.set()

    async def find(self, owner: str, job_id: str) -> JobView | None:
        """Return the current job with the client's id; the tracker is asked only for what is not known here.

        Raises `Unavailable` if it would have to be asked and does not answer.
        """
        key = self._keys.get((owner, job_id))
        if key is not None:
            return self._views[key]
        view = await self._client.get(owner, job_id)
        if view is not None:
            self.learn(view)
            return self._views.get(view.key, view)
        return None

    async def wait_until_settled(self, view: JobView, wait_s: float) -> JobView:
        """Return the job's view once its final state may be shown, or as it is after `wait_s` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        event = asyncio.Event()
        self._watchers.setdefault(view.key, set()).add(event)
        try:
            while True:
                event.clear()
                view = self._views.get(view.key, view)
                now = time.time()
                if view.settled(now) or loop.time() >= deadline:
                    return view
                bound = view.delivery.settles_by - now if view.delivery else wait_s
                await _wait(event, min(deadline - loop.time(), max(0.0, bound)))
        finally:
            self._watchers[view.key].discard(event)
            if not self._watchers[view.key]:
                del self._watchers[view.key]

    def position(self, view: JobView) -> int | None:
        """Return the job's place among those of its model that wait for a device, from 1; None once it is rendered."""
        waiting = self._waiting[view.model]
        return waiting.index(view.seq) + 1 if view.seq in waiting else None

    def has_queued(self, model: str) -> bool:
        """Tell whether jobs of the model can be claimed."""
        return any(self._views[key].state is JobState.QUEUED for key in self._waiting[model].values())


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
