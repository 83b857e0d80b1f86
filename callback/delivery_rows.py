"""Statements on the outbox: one delivery a job, many attempts a delivery."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa

from callback.records import Callback, DeliveryView, JobView
from callback.schema import deliveries, delivery_attempts, jobs
from callback.states import DeliveryState, JobState

_NOT_FINAL = deliveries.c.final.is_(sa.false())


@dataclass(frozen=True, slots=True)
class Parcel:
    """All that one attempt needs to be sent. `attempt` is reserved: no other attempt of the delivery has it.

    `attempts_before` of them were made before the client asked for a redelivery.
    """

    key: str
    owner: str
    job_id: str
    webhook_id: str
    receiver: str
    attempt: int
    attempts_before: int
    url: str
    secret: str | None = field(repr=False)
    signing_secret: str | None = field(repr=False)
    image_url: str | None
    expiry: float | None
    give_up_at: float
    payload_status: str
    finished_at: float
    error: str | None
    picture_key: str | None
    picture_sha256: str | None
    picture_size_bytes: int | None
    picture_width: int | None
    picture_height: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt settled. `retry_at` is None when there will be no further one."""

    state: DeliveryState
    attempted_at: float
    settled_at: float
    retry_at: float | None
    status_code: int | None = None
    response_preview: str | None = None
    error: str | None = None


def payload_status(state: JobState) -> str:
    """Return what the callback's body says: `completed` or `failed` (a timeout is sent as `failed`)."""
    return "completed" if state is JobState.COMPLETED else "failed"


def create(
    tx: sa.Connection,
    key: str,
    receiver: str,
    state: JobState,
    *,
    now: float,
    settles_by: float,
    give_up_at: float,
    expired: bool,
) -> DeliveryView:
    """Open the delivery of a job that has just ended: attempt 1 is reserved, unless the expiry has passed already."""
    delivery = DeliveryView(
        state=DeliveryState.EXPIRED if expired else DeliveryState.PENDING,
        webhook_id=f"msg_{key}",
        attempts=0 if expired else 1,
        final=expired,
        settles_by=settles_by,
        payload_status=payload_status(state),
        first_settled_at=now if expired else None,
        attempted_at=now,
    )
    hidden = {"key": key, "receiver": receiver, "give_up_at": give_up_at, "reserved_at": None if expired else now}
    tx.execute(_OPEN, hidden | {name: getattr(delivery, name) for name in _SHOWN})
    return delivery


def first_parcel(view: JobView, callback: Callback, receiver: str, give_up_at: float) -> Parcel:
    """Return what the attempt reserved by `create` needs, for the job with that delivery; equal to `parcel`."""
    delivery, picture = view.delivery, view.picture
    assert delivery is not None  # noqa: S101 - `create` made it
    assert view.finished_at is not None  # noqa: S101 - only a job that has ended has a delivery
    return Parcel(
        key=view.key,
        owner=view.owner,
        job_id=view.job_id,
        webhook_id=delivery.webhook_id,
        receiver=receiver,
        attempt=delivery.attempts,
        attempts_before=0,
        url=callback.url,
        secret=callback.secret,
        signing_secret=callback.signing_secret,
        image_url=callback.image_url,
        expiry=view.expiry,
        give_up_at=give_up_at,
        payload_status=delivery.payload_status,
        finished_at=view.finished_at,
        error=view.error,
        picture_key=picture.key if picture else None,
        picture_sha256=picture.sha256 if picture else None,
        picture_size_bytes=picture.size_bytes if picture else None,
        picture_width=picture.width if picture else None,
        picture_height=picture.height if picture else None,
    )


def _view(row: sa.RowMapping) -> DeliveryView:
    values: dict[str, Any] = dict(row)
    return DeliveryView(**values | {"state": DeliveryState(values["state"])})


_PARCEL = sa.select(
    jobs.c.key,
    jobs.c.owner,
    jobs.c.job_id,
    deliveries.c.webhook_id,
    deliveries.c.receiver,
    deliveries.c.attempts.label("attempt"),
    deliveries.c.attempts_before,
    jobs.c.callback_url.label("url"),
    jobs.c.callback_secret.label("secret"),
    jobs.c.callback_signing_secret.label("signing_secret"),
    jobs.c.image_url,
    jobs.c.expiry,
    deliveries.c.give_up_at,
    deliveries.c.payload_status,
    jobs.c.finished_at,
    jobs.c.error,
    jobs.c.picture_key,
    jobs.c.picture_sha256,
    jobs.c.picture_size_bytes,
    jobs.c.picture_width,
    jobs.c.picture_height,
).select_from(deliveries.join(jobs))
_PARCEL_OF = _PARCEL.where(deliveries.c.key == sa.bindparam("of_key"))
# Built once: see `job_rows`. The columns to set are those of the parameters.
_SHOWN = {field.name: deliveries.c[field.name] for field in fields(DeliveryView)}
_OPEN = sa.insert(deliveries)
_SETTLE = (
    sa.update(deliveries)
    .where(
        deliveries.c.key == sa.bindparam("of_key"),
        deliveries.c.attempts == sa.bindparam("of_attempt"),
        deliveries.c.reserved_at.is_not(None),
    )
    .values(first_settled_at=sa.func.coalesce(deliveries.c.first_settled_at, sa.bindparam("settled_at")))
    .returning(*_SHOWN.values())
)
_NOTE_ATTEMPT = sa.insert(delivery_attempts)


def parcel(tx: sa.Connection, key: str) -> Parcel:
    """Return what the attempt reserved last needs."""
    return Parcel(**tx.execute(_PARCEL_OF, {"of_key": key}).mappings().one())


def due(tx: sa.Connection, now: float, limit: int, *, busy: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return key and receiver of deliveries whose next attempt is due, the longest overdue first.

    Those of `busy` receivers are left out, so that many to one that is down do not hide the others.
    """
    query = sa.select(deliveries.c.key, deliveries.c.receiver).where(_NOT_FINAL, deliveries.c.next_attempt_at <= now)
    if busy:
        query = query.where(deliveries.c.receiver.not_in(list(busy)))
    rows = tx.execute(query.order_by(deliveries.c.next_attempt_at).limit(limit))
    return [(row.key, row.receiver) for row in rows]


def reserve(tx: sa.Connection, key: str, now: float) -> Parcel | None:
    """Reserve the next attempt of a due delivery; None if it is due no more."""
    where = (deliveries.c.key == key, _NOT_FINAL, deliveries.c.next_attempt_at <= now)
    changed = tx.execute(
        sa.update(deliveries)
        .where(*where)
        .values(attempts=deliveries.c.attempts + 1, next_attempt_at=None, reserved_at=now, attempted_at=now)
    )
    return parcel(tx, key) if changed.rowcount else None


def settle(tx: sa.Connection, key: str, attempt: int, outcome: Outcome) -> DeliveryView | None:
    """Record an attempt's outcome and return the delivery as it is now.

    None if the outcome was recorded before, or a later attempt has been reserved since.

    A callback that was delivered stays so, with the answer to it, if the expiry ends its redelivery.
    """
    shown = {
        "state": outcome.state,
        "attempted_at": outcome.attempted_at,
        "status_code": outcome.status_code,
        "response_preview": outcome.response_preview,
        "error": outcome.error,
    }
    if outcome.state is DeliveryState.EXPIRED and _is_delivered(tx, key):
        shown = {}
    values = {
        "of_key": key,
        "of_attempt": attempt,
        "settled_at": outcome.settled_at,
        "next_attempt_at": outcome.retry_at,
        "reserved_at": None,
        "final": outcome.retry_at is None,
    }
    settled = tx.execute(_SETTLE, values | shown).mappings().first()
    if settled is None:
        return None
    row = {
        "key": key,
        "attempt": attempt,
        "attempted_at": outcome.attempted_at,
        "settled_at": outcome.settled_at,
        "state": outcome.state,
        "status_code": outcome.status_code,
        "error": outcome.error,
    }
    tx.execute(_NOTE_ATTEMPT, row)
    return _view(settled)


def _is_delivered(tx: sa.Connection, key: str) -> bool:
    state = tx.execute(sa.select(deliveries.c.state).where(deliveries.c.key == key)).scalar_one_or_none()
    return state == DeliveryState.DELIVERED


def unsettled(tx: sa.Connection, reserved_before: float) -> list[str]:
    """Return the keys of deliveries whose attempt was reserved before that moment and has no known outcome."""
    # Of the deliveries that are not final those without a next attempt have one reserved; the index knows them.
    where = (_NOT_FINAL, deliveries.c.next_attempt_at.is_(None), deliveries.c.reserved_at < reserved_before)
    return list(tx.execute(sa.select(deliveries.c.key).where(*where)).scalars())


def retry_unsettled(tx: sa.Connection, keys: Collection[str], now: float) -> int:
    """Make these deliveries due whose reserved attempt has no known outcome: whoever was sending is gone.

    Returns how many. The attempt may have arrived, so the next one is a repeat under the same webhook id.
    """
    stuck = (deliveries.c.key == sa.bindparam("of"), _NOT_FINAL, deliveries.c.reserved_at.is_not(None))
    made_due = sa.update(deliveries).where(*stuck).values(next_attempt_at=now, reserved_at=None)
    return sum(tx.execute(made_due, {"of": key}).rowcount for key in keys)


def redeliver(tx: sa.Connection, key: str, request_id: str, *, now: float, give_up_at: float) -> bool:
    """Make a settled delivery due again, its back-off as at the beginning. Once per request.

    Returns whether this request has been carried out, now or before; False while an attempt is under way, and when the
    job's id belongs to a later one: under that id its receiver must not get the earlier picture.
    """
    fresh = sa.or_(deliveries.c.redelivery_id.is_(None), deliveries.c.redelivery_id != request_id)
    current = sa.exists().where(jobs.c.key == key, jobs.c.superseded_at.is_(None))
    changed = tx.execute(
        sa.update(deliveries)
        .where(deliveries.c.key == key, deliveries.c.reserved_at.is_(None), fresh, current)
        .values(
            final=False,
            next_attempt_at=now,
            give_up_at=give_up_at,
            redelivery_id=request_id,
            attempts_before=deliveries.c.attempts,
        )
    )
    if changed.rowcount:
        return True
    done = sa.select(deliveries.c.key).where(deliveries.c.key == key, deliveries.c.redelivery_id == request_id)
    return tx.execute(done).first() is not None
