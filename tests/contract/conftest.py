"""The databases that the store's contract is checked on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.unit.callback.test_tracker_submit",
    "tests.unit.callback.test_tracker_attempts",
)

from callback.store import Store  # noqa: E402
from tests.contract.postgres_server import PostgresMissingError, PostgresServer, running_server  # noqa: E402
from tests.unit.callback.conftest import _look_often, clock, desk, pictures, receiver, start  # noqa: E402, F401

POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the session. Without its binaries tests are skipped, but never in CI."""
    server = running_server()
    try:
        started = server.__enter__()
    except PostgresMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must check the store on PostgreSQL too. {error}")
        pytest.skip(str(error))
    yield started
    server.__exit__(None, None, None)


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
