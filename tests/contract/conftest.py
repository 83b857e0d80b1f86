"""The databases that the store's contract is checked on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.unit.callback.test_tracker_attempts",
    "tests.unit.callback.test_tracker_cancellation",
    "tests.unit.callback.test_tracker_recovery",
    "tests.unit.callback.test_tracker_submit",
    "tests.unit.callback.test_tracker_succession",
    "tests.unit.callback.test_tracker_time_limits",
)

from callback.store import Store  # noqa: E402
from tests.contract.book import Book  # noqa: E402
from tests.postgres_server import PostgresServer  # noqa: E402
from tests.unit.callback.conftest import _look_often, clock, desk, pictures, receiver, start  # noqa: E402, F401

POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)


@pytest.fixture(scope="session")
def postgres_database(postgres: PostgresServer) -> Iterator[str]:
    """A migrated database that the tests share one after the other."""
    with postgres.database() as url:
        store = Store(url)
        store.prepare()
        store.close()
        yield url


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, tmp_path: Path, backend: str) -> Iterator[str]:
    """The URL of a database without any tables."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
    else:
        with request.getfixturevalue("postgres").database() as url:
            yield url


@pytest.fixture(params=["sqlite", POSTGRES])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path, backend: str) -> str:
    """The URL of a database without any rows."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    url = str(request.getfixturevalue("postgres_database"))
    database = url.partition("@/")[2].partition("?")[0]
    request.getfixturevalue("postgres").execute("TRUNCATE jobs, tracker_owner CASCADE", database)
    return url


@pytest.fixture
def book(store_url: str) -> Iterator[Book]:
    book = Book(store_url)
    yield book
    book.store.close()
