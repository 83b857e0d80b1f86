"""What the tracker relies on, of every database: owners, transactions, jobs."""

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from callback import delivery_rows, job_rows
from callback.errors import Deposed, StoreUnavailable
from callback.schema import delivery_attempts
from callback.states import JobState
from callback.store import Store
from tests.contract.book import NOW, URL, Book, outcome
from tests.unit.callback.tracker_kit import new_job

# ---- one owner -------------------------------------------------------------------------------------------------------


def test_each_owner_has_a_higher_epoch(book: Book) -> None:
    assert [book.store.acquire("test", NOW) for _ in range(3)] == [book.epoch + n for n in (1, 2, 3)]


def test_a_former_owner_cannot_begin_a_transaction(book: Book) -> None:
    book.store.acquire("successor", NOW)

    with pytest.raises(Deposed):
        book.insert()


def test_a_takeover_waits_for_the_transaction_under_way(book: Book, store_url: str) -> None:
    successor = Store(store_url)
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(successor.acquire("successor", NOW)))
    with book.store.transaction(book.epoch) as tx:
        thread.start()
        thread.join(0.3)
        assert taken == []
        job_rows.insert(book.insertion, tx, new_job(), 1, NOW)
    thread.join(20)

    assert taken == [book.epoch + 1]
    assert book.read(job_rows.by_client_id, "anyone", "job-1") is not None
    successor.close()


def test_what_fails_inside_a_transaction_leaves_nothing_behind(book: Book) -> None:
    def insert_and_fail(tx: sa.Connection) -> None:
        job_rows.insert(book.insertion, tx, new_job(), 1, NOW)
        raise KeyError

    with pytest.raises(KeyError):
        book.do(insert_and_fail)

    assert book.read(job_rows.by_client_id, "anyone", "job-1") is None


def test_a_mistake_in_a_statement_is_not_taken_for_a_failing_store(book: Book) -> None:
    with pytest.raises(sa.exc.IntegrityError), book.store.transaction(book.epoch) as tx:
        tx.execute(sa.insert(delivery_attempts).values(key="nobody", attempt=1))


def test_a_missing_table_is_a_failing_store_or_a_mistake_and_never_silent(book: Book) -> None:
    with pytest.raises((StoreUnavailable, sa.exc.ProgrammingError)), book.store.reading() as tx:
        tx.execute(sa.text("SELECT * FROM no_such_table"))


# ---- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_read_as_it_was_written(book: Book) -> None:
    request = '{"prompt": "ein Leuchtturm 🗼 \\u0000"}'
    fields = {"request_json": request, "expiry": NOW + 0.125, "callback_url": URL, "secret": "s3cret"}
    key = book.insert("job-1", **fields)
    assert key is not None

    view = book.view(key)

    assert (view.job_id, view.owner, view.model, view.state) == ("job-1", "anyone", "sd", JobState.QUEUED)
    assert (view.request_json, view.expiry, view.queued_at) == (request, NOW + 0.125, NOW + 1)
    assert (view.has_callback, view.callback_url, view.callback_secret_provided) == (True, URL, True)
    assert (view.delivery, view.picture, view.cancel_requested) == (None, None, False)


def test_text_that_no_database_holds_is_made_plain(book: Book) -> None:
    key = book.insert("a\x00b", request_json="c\udcffd")
    assert key is not None

    view = book.view(key)

    replacement = "\N{REPLACEMENT CHARACTER}"
    assert (view.job_id, view.request_json) == (f"a{replacement}b", f"c{replacement}d")
    assert book.read(job_rows.by_client_id, "anyone", "a\x00b") == view


@pytest.mark.parametrize("field", ["key", "job_id", "idempotency_key"])
def test_a_second_job_with_the_same_key_or_id_is_not_inserted(book: Book, field: str) -> None:
    first = {"key": "0" * 32, "job_id": "job-1", "idempotency_key": "once"}
    second = {"key": "1" * 32, "job_id": "job-2", "idempotency_key": "twice", field: first[field]}
    assert book.insert(**first)

    assert book.insert(**second) is None
    assert book.insert("job-3") is not None


def test_an_id_is_free_again_when_its_job_was_superseded(book: Book) -> None:
    old = book.finished("job-1")
    assert book.insert("job-1") is None
    book.do(job_rows.supersede, old, NOW)

    new = book.insert("job-1")

    assert new is not None
    assert book.read(job_rows.by_client_id, "anyone", "job-1").key == new
    assert book.view(old).state is JobState.FAILED


def test_an_idempotency_key_finds_its_job_also_when_superseded(book: Book) -> None:
    old = book.finished("job-1", idempotency_key="once")
    book.do(job_rows.supersede, old, NOW)

    assert book.read(job_rows.by_idempotency_key, "anyone", "once").key == old
    assert book.read(job_rows.by_idempotency_key, "another", "once") is None


def test_a_claim_is_won_once(book: Book) -> None:
    key = book.insert()

    assert book.do(job_rows.claim, [key], 0, "one", "c1") == {key}
    assert book.do(job_rows.claim, [key], 0, "other", "c2") == set()
    (row,) = book.read(job_rows.open_jobs)
    assert (row.holder, row.claim_id, row.view.attempt) == ("one", "c1", 1)


def test_of_the_jobs_of_a_claim_those_are_won_that_still_wait(book: Book) -> None:
    keys = [str(book.insert(f"job-{n}")) for n in range(4)]
    book.do(job_rows.claim, [keys[1]], 0, "one", "c1")
    book.do(job_rows.release, keys[1], 1, blamed=False, waiting_since=NOW)
    book.do(job_rows.finish, keys[2], JobState.QUEUED, 0, {"state": JobState.FAILED, "finished_at": NOW})

    assert book.do(job_rows.claim, [*keys, "nobody's"], 0, "other", "c2") == {keys[0], keys[3]}
    assert book.do(job_rows.claim, [keys[1]], 1, "other", "c2") == {keys[1]}
    assert {row.view.attempt for row in book.read(job_rows.open_jobs)} == {1, 2}


def test_a_release_is_done_once_and_counts_blame_once(book: Book) -> None:
    key = book.claimed()

    assert book.do(job_rows.release, key, 1, blamed=True, waiting_since=NOW + 9) is True
    assert book.do(job_rows.release, key, 1, blamed=True, waiting_since=NOW + 9) is False
    assert book.read(job_rows.blamed_attempts, key) == 1
    (row,) = book.read(job_rows.open_jobs)
    assert (row.view.state, row.view.attempt, row.holder, row.waiting_since) == (JobState.QUEUED, 1, None, NOW + 9)


def test_a_job_ends_once(book: Book) -> None:
    key = book.finished()
    again = {"state": JobState.TIMEOUT, "finished_at": NOW}

    assert book.do(job_rows.finish, key, JobState.PROCESSING, 1, again) is None
    assert book.do(job_rows.finish, key, JobState.QUEUED, 1, again) is None
    assert book.view(key).state is JobState.FAILED
    assert book.read(job_rows.open_jobs) == []


def test_a_report_of_another_attempt_ends_nothing(book: Book) -> None:
    key = book.claimed()

    assert book.do(job_rows.finish, key, JobState.PROCESSING, 2, {"state": JobState.FAILED}) is None
    assert book.view(key).state is JobState.PROCESSING


def test_a_job_that_is_being_cancelled_cannot_complete(book: Book) -> None:
    key = book.claimed()
    book.do(job_rows.request_cancel, key)
    completed = {"state": JobState.COMPLETED, "picture_key": "k"}

    assert book.view(key).cancel_requested
    assert book.do(job_rows.finish, key, JobState.PROCESSING, 1, completed) is None
    assert book.do(job_rows.finish, key, JobState.PROCESSING, 1, {"state": JobState.FAILED}).view == book.view(key)


def test_a_waiting_job_cannot_be_asked_to_stop(book: Book) -> None:
    key = book.insert()
    book.do(job_rows.request_cancel, key)

    assert not book.view(str(key)).cancel_requested


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (JobState.QUEUED, JobState.COMPLETED),
        (JobState.FAILED, JobState.TIMEOUT),
        (JobState.PROCESSING, JobState.QUEUED),
    ],
)
def test_ways_that_the_table_does_not_know_are_refused(book: Book, before: JobState, after: JobState) -> None:
    with pytest.raises(ValueError, match="cannot"):
        book.do(job_rows.finish, "key", before, 1, {"state": after, "picture_key": "k"})


def test_open_jobs_come_in_the_order_of_their_submission(book: Book) -> None:
    first, second, third = book.claimed("a"), book.finished("b"), book.insert("c")

    assert [row.view.key for row in book.read(job_rows.open_jobs)] == [first, third]
    assert second not in [row.view.key for row in book.read(job_rows.open_jobs)]
    assert book.read(job_rows.last_seq) == 3


def test_an_empty_store_has_given_no_queue_number(book: Book) -> None:
    assert book.read(job_rows.last_seq) == 0
    assert book.read(job_rows.pictures_bytes) == 0
    assert book.read(job_rows.page, None, (), None, 10) == []


def test_pages_go_back_in_time_and_can_be_narrowed(book: Book) -> None:
    book.insert("a")
    book.finished("b")
    book.insert("c", owner="another")
    book.claimed("d")

    def page(*args: Any) -> list[str]:
        return [view.job_id for view in book.read(job_rows.page, *args)]

    assert page(None, (), None, 10) == ["d", "c", "b", "a"]
    assert page("anyone", (), None, 2) == ["d", "b"]
    assert page("anyone", (), 2, 2) == ["a"]
    assert page("anyone", (JobState.FAILED,), None, 10) == ["b"]
    assert page("anyone", (JobState.FAILED, JobState.QUEUED), None, 10) == ["b", "a"]
    assert page(None, (JobState.QUEUED,), None, 10) == ["c", "a"]


def test_old_jobs_are_found_unless_their_callback_is_under_way(book: Book) -> None:
    old, young = book.finished("old", at=NOW), book.finished("young", at=NOW + 100)
    undelivered = book.delivery("undelivered")

    found = [view.key for view in book.read(job_rows.finished_before, NOW + 50, 10)]
    assert found == [old]

    book.do(delivery_rows.settle, undelivered, 1, outcome(retry_at=None))
    found = [view.key for view in book.read(job_rows.finished_before, NOW + 50, 10)]
    assert sorted(found) == sorted([old, undelivered])
    assert young not in found


def test_pictures_are_counted_and_found_oldest_first(book: Book) -> None:
    keys = [book.finished(f"job-{n}", at=NOW + n, size_bytes=100 + n) for n in (2, 0, 1)]
    book.finished("without")
    assert book.read(job_rows.pictures_bytes) == 303
    assert [view.key for view in book.read(job_rows.oldest_pictures, 2)] == [keys[1], keys[2]]

    book.do(job_rows.picture_deleted, [keys[1]], NOW)

    assert book.read(job_rows.pictures_bytes) == 203
    assert [view.key for view in book.read(job_rows.oldest_pictures, 2)] == [keys[2], keys[0]]
    assert book.view(keys[1]).picture_deleted


def test_a_forgotten_job_takes_its_delivery_and_its_log_along(book: Book) -> None:
    key = book.delivery()
    book.do(delivery_rows.settle, key, 1, outcome())

    book.do(job_rows.delete, [key])

    assert book.read(job_rows.by_key, key) is None
    assert book.read(lambda tx: tx.execute(delivery_attempts.select()).all()) == []


def test_a_further_idempotency_key_finds_the_job_and_goes_with_it(book: Book) -> None:
    key = book.finished("job-1", idempotency_key="first")
    book.do(job_rows.add_alias, "anyone", "second", key)

    assert [book.read(job_rows.by_idempotency_key, "anyone", name).key for name in ("first", "second")] == [key, key]
    assert book.read(job_rows.by_idempotency_key, "another", "second") is None
    assert book.read(job_rows.is_alias, "anyone", "second")
    assert not book.read(job_rows.is_alias, "anyone", "first")
    assert book.read(job_rows.aliases, key) == 1
    with pytest.raises(sa.exc.IntegrityError):
        book.do(job_rows.add_alias, "anyone", "second", key)

    book.do(job_rows.delete, [key])
    assert not book.read(job_rows.is_alias, "anyone", "second")
