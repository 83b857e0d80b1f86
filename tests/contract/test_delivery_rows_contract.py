"""What the courier relies on, of every database: one delivery a job, each attempt settled once."""

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.delivery_rows import Parcel
from callback.records import Callback
from callback.schema import delivery_attempts
from callback.states import DeliveryState, JobState
from tests.contract.book import NOW, URL, Book, outcome


def test_a_delivery_begins_with_its_first_attempt_reserved(book: Book) -> None:
    key = book.delivery()

    parcel = book.read(delivery_rows.parcel, key)
    assert isinstance(parcel, Parcel)
    assert (parcel.attempt, parcel.url, parcel.secret, parcel.webhook_id) == (1, URL, "s3cret", f"msg_{key}")
    delivery = book.view(key).delivery
    assert delivery is not None
    assert (delivery.state, delivery.attempts, delivery.final) == (DeliveryState.PENDING, 1, False)
    assert book.do(delivery_rows.reserve, key, NOW + 1e6) is None
    assert book.do(delivery_rows.due, NOW + 1e6, 10) == []


@pytest.mark.parametrize("size_bytes", [None, 1000])
def test_the_first_parcel_is_what_the_store_has(book: Book, size_bytes: int | None) -> None:
    callback = Callback(URL, "s3cret", "http://service/images/job-1.png", "whsec_x")
    key = book.claimed(callback=callback, owner="somebody", expiry=NOW + 60)
    values: dict[str, Any] = {"state": JobState.FAILED, "finished_at": NOW, "error": "It broke."}
    if size_bytes is not None:
        picture = {"sha256": "00", "size_bytes": size_bytes, "width": 64, "height": 32, "key": f"{key}/1.png"}
        values = {"state": JobState.COMPLETED, "finished_at": NOW}
        values |= {f"picture_{name}": value for name, value in picture.items()}
    job = book.do(job_rows.finish, key, JobState.PROCESSING, 1, values)
    until = {"settles_by": NOW + 30, "give_up_at": NOW + 3600}
    opened = book.do(delivery_rows.create, key, "receiver:80", values["state"], now=NOW, expired=False, **until)

    assert job.callback == callback
    parcel = delivery_rows.first_parcel(replace(job.view, delivery=opened), job.callback, "receiver:80", NOW + 3600)
    assert parcel == book.read(delivery_rows.parcel, key)


def test_a_job_has_one_delivery(book: Book) -> None:
    key = book.delivery()

    with pytest.raises(sa.exc.IntegrityError):
        book.do(
            delivery_rows.create,
            key,
            "receiver",
            JobState.FAILED,
            now=NOW,
            settles_by=NOW,
            give_up_at=NOW,
            expired=False,
        )


def test_an_expired_delivery_is_final_from_the_beginning(book: Book) -> None:
    delivery = book.view(book.delivery(expired=True)).delivery

    assert delivery is not None
    assert (delivery.state, delivery.final, delivery.attempts) == (DeliveryState.EXPIRED, True, 0)
    assert delivery.first_settled_at == NOW


def test_an_outcome_is_recorded_once(book: Book) -> None:
    key = book.delivery()

    settled = book.do(delivery_rows.settle, key, 1, outcome())
    assert settled == book.view(key).delivery
    assert book.do(delivery_rows.settle, key, 1, outcome(DeliveryState.DELIVERED, None)) is None

    delivery = book.view(key).delivery
    assert delivery is not None
    assert (delivery.state, delivery.status_code, delivery.response_preview) == (DeliveryState.FAILED, 503, "not now")
    assert (delivery.first_settled_at, delivery.next_attempt_at, delivery.final) == (NOW + 1, NOW + 2, False)
    assert len(book.read(lambda tx: tx.execute(delivery_attempts.select()).all())) == 1


def test_an_outcome_of_an_earlier_attempt_is_not_recorded(book: Book) -> None:
    key = book.delivery()
    book.do(delivery_rows.retry_unsettled, [key], NOW)
    book.do(delivery_rows.reserve, key, NOW)

    assert book.do(delivery_rows.settle, key, 1, outcome()) is None
    assert book.do(delivery_rows.settle, key, 2, outcome()) == book.view(key).delivery


def test_a_due_delivery_is_reserved_once_with_the_next_number(book: Book) -> None:
    key = book.delivery()
    book.do(delivery_rows.settle, key, 1, outcome())

    assert book.do(delivery_rows.due, NOW + 1, 10) == []
    assert book.do(delivery_rows.due, NOW + 2, 10) == [(key, "receiver.example:80")]
    reserved = book.do(delivery_rows.reserve, key, NOW + 2)
    assert isinstance(reserved, Parcel)
    assert reserved.attempt == 2
    assert book.do(delivery_rows.reserve, key, NOW + 2) is None


def test_the_longest_overdue_come_first_and_busy_receivers_are_left_out(book: Book) -> None:
    for n, (receiver, retry_at) in enumerate((("a", NOW + 3), ("b", NOW + 1), ("a", NOW + 2), ("c", NOW + 4))):
        key = book.delivery(f"job-{n}", receiver=receiver)
        book.do(delivery_rows.settle, key, 1, outcome(retry_at=retry_at))

    assert [receiver for _, receiver in book.do(delivery_rows.due, NOW + 9, 10)] == ["b", "a", "a", "c"]
    assert [receiver for _, receiver in book.do(delivery_rows.due, NOW + 9, 10, busy={"a"})] == ["b", "c"]
    assert len(book.do(delivery_rows.due, NOW + 9, 1)) == 1


def test_unsettled_attempts_are_found_by_their_age(book: Book) -> None:
    key = book.delivery("reserved")
    settled = book.delivery("settled")
    book.do(delivery_rows.settle, settled, 1, outcome())

    assert book.do(delivery_rows.unsettled, NOW) == []
    assert book.do(delivery_rows.unsettled, NOW + 1) == [key]
    assert book.do(delivery_rows.unsettled, float("inf")) == [key]
    assert book.do(delivery_rows.retry_unsettled, [key, settled], NOW + 5) == 1
    assert book.do(delivery_rows.due, NOW + 5, 10) == [(settled, "receiver.example:80"), (key, "receiver.example:80")]


def test_attempts_before_a_redelivery_are_told_apart_from_those_since(book: Book) -> None:
    key = book.delivery()
    book.do(delivery_rows.settle, key, 1, outcome(DeliveryState.FAILED, None))
    book.do(delivery_rows.redeliver, key, "one", now=NOW, give_up_at=NOW + 10)

    first = book.do(delivery_rows.reserve, key, NOW)
    book.do(delivery_rows.settle, key, 2, outcome(retry_at=NOW + 2))
    second = book.do(delivery_rows.reserve, key, NOW + 2)

    assert [(parcel.attempt, parcel.attempts_before) for parcel in (first, second)] == [(2, 1), (3, 1)]


def test_a_job_whose_id_belongs_to_a_later_one_is_not_redelivered(book: Book) -> None:
    key = book.delivery()
    book.do(delivery_rows.settle, key, 1, outcome(DeliveryState.DELIVERED, None))
    assert book.do(delivery_rows.redeliver, key, "one", now=NOW, give_up_at=NOW + 10) is True
    book.do(delivery_rows.reserve, key, NOW)
    book.do(delivery_rows.settle, key, 2, outcome(DeliveryState.DELIVERED, None))
    book.do(job_rows.supersede, key, NOW)
    assert book.do(delivery_rows.redeliver, key, "two", now=NOW, give_up_at=NOW + 10) is False
    assert book.do(delivery_rows.redeliver, key, "one", now=NOW, give_up_at=NOW + 10) is True
    assert book.do(delivery_rows.due, NOW + 99, 10) == []


def test_a_redelivery_is_carried_out_once_per_request_and_not_during_an_attempt(book: Book) -> None:
    key = book.delivery()

    def redeliver(request_id: str) -> bool:
        return bool(book.do(delivery_rows.redeliver, key, request_id, now=NOW, give_up_at=NOW + 10))

    assert redeliver("under way") is False
    book.do(delivery_rows.settle, key, 1, outcome(DeliveryState.DELIVERED, None))
    assert redeliver("one") is True
    book.do(delivery_rows.reserve, key, NOW)
    book.do(delivery_rows.settle, key, 2, outcome(DeliveryState.DELIVERED, None))
    assert redeliver("one") is True
    assert book.do(delivery_rows.due, NOW, 10) == []
    assert redeliver("two") is True
    delivery = book.view(key).delivery
    assert delivery is not None
    assert (delivery.attempts, delivery.final, delivery.first_settled_at) == (2, False, NOW + 1)
