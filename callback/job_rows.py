"""Statements on the job table. Every change is a compare-and-set on (state, attempt) that says whether it happened.

Those of every job's way are built once: SQLAlchemy takes longer to build a statement than the database to carry it out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callback.records import Callback, DeliveryView, JobView, NewJob, Picture
from callback.schema import deliveries, idempotency_aliases, jobs
from callback.states import FINAL, DeliveryState, JobState, allowed
from callback.store import Store

_VIEW = (
    sa.select(jobs, *(column.label(f"delivery_{column.name}") for column in deliveries.c))
    .select_from(jobs.outerjoin(deliveries))
    .order_by(jobs.c.seq)
)
_COMMON = tuple(field for field in JobView.__dataclass_fields__ if field in jobs.c)
_DELIVERY = tuple(DeliveryView.__dataclass_fields__)
_IN_ANY_ORDER = _VIEW.order_by(None)
_BY_KEY = _IN_ANY_ORDER.where(jobs.c.key == sa.bindparam("of_key"))
_BY_CLIENT_ID = _IN_ANY_ORDER.where(
    jobs.c.owner == sa.bindparam("of_owner"),
    jobs.c.job_id == sa.bindparam("of_job_id"),
    jobs.c.superseded_at.is_(None),
)
# The columns to set are those of the parameters.
_CHANGE = sa.update(jobs).where(
    jobs.c.key == sa.bindparam("of_key"),
    jobs.c.state == sa.bindparam("before"),
    jobs.c.attempt == sa.bindparam("of_attempt"),
)
_FINISH = _CHANGE.returning(*jobs.c)
_COMPLETE = _FINISH.where(jobs.c.cancel_requested.is_(sa.false()))
_CLAIM = (
    sa.update(jobs)
    .where(
        jobs.c.key.in_(sa.bindparam("of_keys", expanding=True)),
        jobs.c.state == JobState.QUEUED,
        jobs.c.attempt == sa.bindparam("of_attempt"),
    )
    .values(state=JobState.PROCESSING, attempt=jobs.c.attempt + 1)
    .returning(jobs.c.key)
)
_RELEASE = _CHANGE.values(blamed=jobs.c.blamed + sa.bindparam("more_blame"))
_SETTABLE = {*jobs.c.keys(), "more_blame"}
_HAS_PICTURE = (jobs.c.picture_size_bytes.is_not(None), jobs.c.picture_deleted_at.is_(None))
_SETTLED = sa.or_(deliveries.c.key.is_(None), deliveries.c.final.is_(sa.true()))


def _joined_view(row: sa.RowMapping) -> JobView:
    """Build the view that readers get from a row of `_VIEW`."""
    delivery = None
    if row["delivery_key"] is not None:
        values: dict[str, Any] = {name: row[f"delivery_{name}"] for name in _DELIVERY}
        delivery = DeliveryView(**values | {"state": DeliveryState(values["state"])})
    return _view(row, delivery)


def _view(row: sa.RowMapping, delivery: DeliveryView | None) -> JobView:
    picture = None
    if row["picture_key"] is not None:
        picture = Picture(
            key=row["picture_key"],
            sha256=row["picture_sha256"],
            size_bytes=row["picture_size_bytes"],
            width=row["picture_width"],
            height=row["picture_height"],
        )
    common: dict[str, Any] = {name: row[name] for name in _COMMON}
    return JobView(
        **common | {"state": JobState(row["state"])},
        has_callback=row["callback_url"] is not None,
        callback_secret_provided=row["callback_secret"] is not None,
        picture=picture,
        picture_deleted=row["picture_deleted_at"] is not None,
        delivery=delivery,
    )


def insertion(store: Store) -> sa.Executable:
    """Return the statement of `insert`, to be built once for each store."""
    # RETURNING tells whether there was a conflict: the count of inserted rows is not known to every driver.
    statement: sa.Executable = store.insert(jobs).on_conflict_do_nothing().returning(jobs.c.key)
    return statement


def insert(statement: sa.Executable, tx: sa.Connection, job: NewJob, seq: int, now: float) -> bool:
    """Insert a queued job with the `insertion` of the store; False if its key, id or idempotency key is taken."""
    callback = job.callback
    row = {
        "key": job.key,
        "seq": seq,
        "owner": job.owner,
        "job_id": job.job_id,
        "kind": job.kind,
        "model": job.model,
        "state": JobState.QUEUED,
        "attempt": 0,
        "blamed": 0,
        "request_json": job.request_json,
        "fingerprint": job.fingerprint,
        "idempotency_key": job.idempotency_key,
        "callback_url": callback.url if callback else None,
        "callback_secret": callback.secret if callback else None,
        "callback_signing_secret": callback.signing_secret if callback else None,
        "image_url": callback.image_url if callback else None,
        "expiry": job.expiry,
        "queued_at": now,
        "waiting_since": now,
        "cancel_requested": False,
    }
    return tx.execute(statement, row).first() is not None


def _one(tx: sa.Connection, query: sa.Select[Any], **values: str) -> JobView | None:
    row = tx.execute(query, values).mappings().first()
    return _joined_view(row) if row is not None else None


def by_key(tx: sa.Connection, key: str) -> JobView | None:
    """Return the job with our key."""
    return _one(tx, _BY_KEY, of_key=key)


def by_client_id(tx: sa.Connection, owner: str, job_id: str) -> JobView | None:
    """Return the current job with the client's id; earlier ones under the same id are reached by key only."""
    return _one(tx, _BY_CLIENT_ID, of_owner=owner, of_job_id=job_id)


def by_idempotency_key(tx: sa.Connection, owner: str, idempotency_key: str) -> JobView | None:
    """Return the job that was submitted with this Idempotency-Key, or whose repeated submission came with it."""
    made = _IN_ANY_ORDER.where(jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key)
    repeated = _IN_ANY_ORDER.where(jobs.c.key == _aliased_key(owner, idempotency_key))
    return _one(tx, made) or _one(tx, repeated)


def is_alias(tx: sa.Connection, owner: str, idempotency_key: str) -> bool:
    """Tell whether a repeated submission came with this Idempotency-Key."""
    return tx.execute(sa.select(_aliased_key(owner, idempotency_key))).scalar_one() is not None


def _aliased_key(owner: str, idempotency_key: str) -> sa.ScalarSelect[str]:
    alias = idempotency_aliases.c
    where = (alias.owner == owner, alias.idempotency_key == idempotency_key)
    return sa.select(alias.key).where(*where).scalar_subquery()


def aliases(tx: sa.Connection, key: str) -> int:
    """Return how many further Idempotency-Keys the job has."""
    count = sa.select(sa.func.count()).select_from(idempotency_aliases).where(idempotency_aliases.c.key == key)
    return int(tx.execute(count).scalar_one())


def add_alias(tx: sa.Connection, owner: str, idempotency_key: str, key: str) -> None:
    """Note a further Idempotency-Key of the job. The caller has seen that no job has it."""
    tx.execute(sa.insert(idempotency_aliases).values(owner=owner, idempotency_key=idempotency_key, key=key))


def supersede(tx: sa.Connection, key: str, now: float) -> None:
    """Free the client's id of a final job for a new one; the record stays under its key."""
    tx.execute(sa.update(jobs).where(jobs.c.key == key).values(superseded_at=now))


@dataclass(frozen=True, slots=True)
class OpenJob:
    """An open job as it is stored: what readers see, and what only the tracker needs."""

    view: JobView
    waiting_since: float
    holder: str | None
    claim_id: str | None


def open_jobs(tx: sa.Connection) -> list[OpenJob]:
    """Return all open jobs in queue order."""
    rows = tx.execute(_VIEW.where(jobs.c.finished_at.is_(None))).mappings()
    return [OpenJob(_joined_view(row), row["waiting_since"], row["holder"], row["claim_id"]) for row in rows]


def last_seq(tx: sa.Connection) -> int:
    """Return the highest queue number given so far."""
    return tx.execute(sa.select(sa.func.max(jobs.c.seq))).scalar_one() or 0


def claim(tx: sa.Connection, keys: Sequence[str], attempt: int, holder: str, claim_id: str) -> set[str]:
    """queued → processing, as attempt `attempt` + 1, for those jobs that are queued after `attempt` attempts.

    Returns their keys.
    """
    which = {"of_keys": keys, "of_attempt": attempt}
    return set(tx.execute(_CLAIM, which | {"holder": holder, "claim_id": claim_id}).scalars())


def release(tx: sa.Connection, key: str, attempt: int, *, blamed: bool, waiting_since: float) -> bool:
    """processing → queued; `blamed` counts towards the cap of attempts."""
    values = {
        "state": JobState.QUEUED,
        "holder": None,
        "claim_id": None,
        "more_blame": int(blamed),
        "waiting_since": waiting_since,
    }
    return bool(tx.execute(_RELEASE, _change(key, JobState.PROCESSING, attempt, values)).rowcount)


def blamed_attempts(tx: sa.Connection, key: str) -> int:
    """Return how many attempts at the job ended their replica."""
    return int(tx.execute(sa.select(jobs.c.blamed).where(jobs.c.key == key)).scalar_one())


@dataclass(frozen=True, slots=True)
class FinalJob:
    """A job that has just ended, as it is stored: what readers see, and what only its callback needs."""

    view: JobView
    callback: Callback | None


def finish(tx: sa.Connection, key: str, before: JobState, attempt: int, values: dict[str, Any]) -> FinalJob | None:
    """Write a final state with `values` (state, times, picture, error). A job being cancelled cannot complete.

    Returns the job as it is now, which has no delivery yet; None if it was not in the state `before` of `attempt`.
    Raises ValueError for a state that is not final and for a completion without a picture.
    """
    if values["state"] not in FINAL:
        raise ValueError(f"Job {key} cannot end in the state {values['state']}.")
    if values["state"] is JobState.COMPLETED and values.get("picture_key") is None:
        raise ValueError(f"Job {key} cannot complete without a picture.")
    statement = _COMPLETE if values["state"] is JobState.COMPLETED else _FINISH
    parameters = _change(key, before, attempt, values | {"holder": None, "claim_id": None})
    row = tx.execute(statement, parameters).mappings().first()
    return FinalJob(_view(row, None), _callback(row)) if row is not None else None


def _callback(row: sa.RowMapping) -> Callback | None:
    # The other columns were written with this one.
    if row["callback_url"] is None:
        return None
    return Callback(row["callback_url"], row["callback_secret"], row["image_url"], row["callback_signing_secret"])


def _change(key: str, before: JobState, attempt: int, values: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a change of state."""
    if not allowed(before, values["state"]):
        raise ValueError(f"A job cannot go from {before} to {values['state']}.")
    if unknown := values.keys() - _SETTABLE:
        # SQLAlchemy would ignore them.
        raise ValueError(f"No columns of a job: {', '.join(sorted(unknown))}.")
    return {"of_key": key, "before": before, "of_attempt": attempt} | values


def request_cancel(tx: sa.Connection, key: str) -> None:
    """Note that a processing job shall stop."""
    where = (jobs.c.key == key, jobs.c.state == JobState.PROCESSING)
    tx.execute(sa.update(jobs).where(*where).values(cancel_requested=True))


def page(
    tx: sa.Connection, owner: str | None, states: Sequence[JobState], before: int | None, limit: int
) -> list[JobView]:
    """Return up to `limit` jobs, newest first, older than queue number `before`."""
    if len(states) > 1:
        # One by one: the index leads to the newest of one state, not to the newest of several.
        views = [view for state in states for view in page(tx, owner, (state,), before, limit)]
        return sorted(views, key=lambda view: view.seq, reverse=True)[:limit]
    query = _IN_ANY_ORDER.order_by(jobs.c.seq.desc()).limit(limit)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if states:
        query = query.where(jobs.c.state == states[0])
    if before is not None:
        query = query.where(jobs.c.seq < before)
    return [_joined_view(row) for row in tx.execute(query).mappings()]


def finished_before(tx: sa.Connection, moment: float, limit: int, *, but: Collection[str] = ()) -> list[JobView]:
    """Return up to `limit` jobs that ended before `moment` and whose callback is settled for good, oldest first.

    The keys in `but` are left out.
    """
    query = _IN_ANY_ORDER.order_by(jobs.c.finished_at).where(jobs.c.finished_at < moment, _SETTLED).limit(limit)
    if but:
        query = query.where(jobs.c.key.not_in(list(but)))
    return [_joined_view(row) for row in tx.execute(query).mappings()]


def pictures_bytes(tx: sa.Connection) -> int:
    """Return how many bytes of pictures are recorded as kept."""
    kept = sa.select(sa.func.coalesce(sa.func.sum(jobs.c.picture_size_bytes), 0)).where(*_HAS_PICTURE)
    return int(tx.execute(kept).scalar_one())


def oldest_pictures(tx: sa.Connection, limit: int) -> list[JobView]:
    """Return up to `limit` settled jobs that still have a picture, oldest first."""
    query = _IN_ANY_ORDER.order_by(jobs.c.finished_at).where(*_HAS_PICTURE, _SETTLED).limit(limit)
    return [_joined_view(row) for row in tx.execute(query).mappings()]


def still_settled(tx: sa.Connection, keys: Sequence[str]) -> list[str]:
    """Return those of these keys whose job exists and whose callback is settled for good.

    For the transaction that changes what was read before it: a client may have asked for a redelivery since.
    """
    found = sa.select(jobs.c.key).select_from(jobs.outerjoin(deliveries)).where(jobs.c.key.in_(keys), _SETTLED)
    return list(tx.execute(found).scalars())


def picture_deleted(tx: sa.Connection, keys: Sequence[str], now: float) -> None:
    """Note that the pictures of these jobs are gone. From then on their callbacks cannot be redelivered."""
    tx.execute(sa.update(jobs).where(jobs.c.key.in_(keys)).values(picture_deleted_at=now))


def delete(tx: sa.Connection, keys: Sequence[str]) -> None:
    """Forget these jobs; their deliveries go with them."""
    tx.execute(sa.delete(jobs).where(jobs.c.key.in_(keys)))
