"""A store with the tracker's transactions around it, for the tests of its contract."""

from typing import Any

from callback import delivery_rows, job_rows
from callback.delivery_rows import Outcome
from callback.records import JobView
from callback.states import DeliveryState, JobState
from callback.store import Store
from tests.unit.callback.tracker_kit import new_job

NOW = 1_900_000_000.25
URL = "http://receiver.example/callback"


class Book:
    """A store with the tracker's transactions around it."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.store.prepare()
        self.epoch = self.store.acquire("test", NOW)
        self.insertion = job_rows.insertion(self.store)
        self._seq = 0

    def do(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self.store.transaction(self.epoch) as tx:
            return function(tx, *args, **kwargs)

    def read(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self.store.reading() as tx:
            return function(tx, *args, **kwargs)

    def insert(self, job_id: str = "job-1", **fields: Any) -> str | None:
        """Insert a job; returns its key, or None if something of it is taken."""
        job = new_job(job_id, **fields)
        self._seq += 1
        with self.store.transaction(self.epoch) as tx:
            inserted = job_rows.insert(self.insertion, tx, job, self._seq, NOW + self._seq)
        return job.key if inserted else None

    def claimed(self, job_id: str = "job-1", **fields: Any) -> str:
        key = self.insert(job_id, **fields)
        assert key is not None
        assert self.do(job_rows.claim, [key], 0, "holder", "claim") == {key}
        return key

    def finished(self, job_id: str = "job-1", *, at: float = NOW, size_bytes: int | None = None, **fields: Any) -> str:
        key = self.claimed(job_id, **fields)
        values: dict[str, Any] = {"state": JobState.FAILED, "finished_at": at}
        if size_bytes is not None:
            picture = {"sha256": "00", "size_bytes": size_bytes, "width": 64, "height": 64, "key": f"{key}/1.png"}
            values |= {f"picture_{name}": value for name, value in picture.items()}
            values["state"] = JobState.COMPLETED
        job = self.do(job_rows.finish, key, JobState.PROCESSING, 1, values)
        assert job.view == self.view(key)
        return key

    def delivery(self, job_id: str = "job-1", *, receiver: str = "receiver.example:80", expired: bool = False) -> str:
        key = self.finished(job_id, callback_url=URL, secret="s3cret")
        opened = self.do(
            delivery_rows.create,
            key,
            receiver,
            JobState.FAILED,
            now=NOW,
            settles_by=NOW + 30,
            give_up_at=NOW + 3600,
            expired=expired,
        )
        assert opened == self.view(key).delivery
        return key

    def view(self, key: str) -> JobView:
        view = self.read(job_rows.by_key, key)
        assert isinstance(view, JobView)
        return view


def outcome(state: DeliveryState = DeliveryState.FAILED, retry_at: float | None = NOW + 2) -> Outcome:
    return Outcome(state, NOW, NOW + 1, retry_at, 503, "not now", "It failed.")
