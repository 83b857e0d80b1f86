"""The jobs that ended last, kept in memory: they are polled most, and reading a row costs more than all else."""

from collections import OrderedDict
from collections.abc import Iterable

from callback.records import JobView

KEPT = 4096


class RecentFinals:
    """What the rows of the jobs that ended last say, by the client's id.

    A job is taken in when it ends: then its id is its own. Later views are told in the order of the commits. One is
    shown only while nothing changes the row silently: not while the callback is being repeated.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._views: OrderedDict[str, JobView | None] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}
        self._identities: dict[str, tuple[str, str]] = {}

    def get(self, owner: str, job_id: str) -> JobView | None:
        """Return the final job that has the client's id, None if it is not known here."""
        key = self._keys.get((owner, job_id))
        return self._views[key] if key is not None else None

    def add(self, view: JobView) -> None:
        """Take in a job that has just ended. The longest unchanged one makes room for it."""
        self.free(view.owner, view.job_id)
        identity = (view.owner, view.job_id)
        self._keys[identity], self._identities[view.key] = view.key, identity
        self._views[view.key] = None
        self.update(view)
        while len(self._views) > self._kept:
            self.forget((next(iter(self._views)),))

    def update(self, view: JobView) -> None:
        """Note a later view of a job that is kept here; of others, whose id may be another job's by now, nothing."""
        if view.key in self._views:
            settled = view.delivery is None or view.delivery.final
            self._views[view.key] = view if settled else None
            self._views.move_to_end(view.key)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop these jobs: their rows have changed or gone."""
        for key in keys:
            if key in self._views:
                del self._views[key]
                del self._keys[self._identities.pop(key)]

    def free(self, owner: str, job_id: str) -> None:
        """Drop whatever final job has the client's id: it belongs to another one now."""
        key = self._keys.get((owner, job_id))
        if key is not None:
            self.forget((key,))

    def clear(self) -> None:
        """Drop everything: nobody knows any more what the rows are."""
        self._views.clear()
        self._keys.clear()
        self._identities.clear()
