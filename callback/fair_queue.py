"""The order in which the queued jobs of a model are claimed: owners take turns, each with the job that came first."""

from collections.abc import Iterator

from sortedcontainers import SortedDict


class FairQueue:
    """Keys of queued jobs. One owner's thousands delay another's first job by one job."""

    def __init__(self) -> None:
        # In the order of their turns.
        self._by_owner: dict[str, SortedDict[int, str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, owner by owner."""
        return (key for jobs in self._by_owner.values() for key in jobs.values())

    def put(self, owner: str, seq: int, key: str) -> None:
        """Add a job at its place among its owner's. An owner who had none is the last to have a turn."""
        jobs = self._by_owner.get(owner)
        if jobs is None:
            jobs = self._by_owner[owner] = SortedDict()
        jobs[seq] = key

    def discard(self, owner: str, seq: int) -> None:
        """Remove a job, if it is there."""
        jobs = self._by_owner.get(owner)
        if jobs is not None:
            jobs.pop(seq, None)
            if not jobs:
                del self._by_owner[owner]

    def take(self, limit: int) -> list[str]:
        """Remove the keys of up to `limit` jobs and return them, in the order of turns."""
        taken: list[str] = []
        while self._by_owner and len(taken) < limit:
            owner = next(iter(self._by_owner))
            jobs = self._by_owner.pop(owner)
            taken.append(jobs.popitem(0)[1])
            if jobs:
                self._by_owner[owner] = jobs
        return taken

    def oldest(self) -> str | None:
        """Return the key of the job that was accepted first."""
        heads = (jobs.peekitem(0) for jobs in self._by_owner.values())
        return min(heads, default=(0, None))[1]
