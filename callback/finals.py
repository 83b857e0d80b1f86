"""The jobs that ended last, kept in memory: they are polled most, and reading a row costs more than all else."""

from collections import OrderedDict
from collections.abc import Iterable

from callback.records import JobView

KEPT = 8192


class RecentFinals:
    """The latest views of the jobs that ended last, by the client's id.

    It is told whatever is committed, in the order of the commits, and never what was read: so a view in it is that of
    the row. The longest unchanged one makes room for the next.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._views: OrderedDict[str, JobView] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}

    def get(self, owner: str, job_id: str) -> JobView | None:
        """Return the final job that has the client's id, None if it is not known here."""
        key = self._keys.get((owner, job_id))
        return self._views[key] if key is not None else None

    def note(self, view: JobView) -> None:
        """Keep a final job's view. One whose id has been given to a later job is not reached by it any more."""
        identity = (view.owner, view.job_id)
        holder = self._views.get(self._keys.get(identity, ""))
        if holder is not None and holder.seq > view.seq:
            return
        if holder is not None and holder.key != view.key:
            del self._views[holder.key]
        self._keys[identity] = view.key
        self._views[view.key] = view
        self._views.move_to_end(view.key)
        while len(self._views) > self._kept:
            self.forget((next(iter(self._views)),))

    def forget(self, keys: Iterable[str]) -> None:
        """Drop these jobs: their rows have changed or gone."""
        for key in keys:
            view = self._views.pop(key, None)
            if view is not None:
                del self._keys[view.owner, view.job_id]

    def free(self, owner: str, job_id: str) -> None:
        """Drop whatever final job has the client's id: it belongs to an open one now."""
        key = self._keys.get((owner, job_id))
        if key is not None:
            self.forget((key,))

    def clear(self) -> None:
        """Drop everything: nobody knows any more what the rows are."""
        self._views.clear()
        self._keys.clear()
