"""The schema: made by migrations, equal to what the statements are written for, protected from older versions."""

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import callback.store
from callback.errors import SchemaTooNew
from callback.schema import metadata
from callback.store import Store


@pytest.fixture
def store(empty_url: str) -> Store:
    return Store(empty_url)


def test_migrations_lead_from_nothing_to_the_schema_of_the_statements(store: Store) -> None:
    store.prepare()

    with store._writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    store.close()


def test_the_indexes_are_those_of_the_statements(store: Store, empty_url: str) -> None:
    store.prepare()

    # Over a new connection: SQLite's PRAGMAs tell an old one what it saw before the migration.
    fresh = Store(empty_url)
    found = sa.inspect(fresh._reader)
    for table in metadata.sorted_tables:
        indexes = {str(index["name"]): index for index in found.get_indexes(table.name)}
        assert indexes.keys() == {str(index.name) for index in table.indexes}
        for index in table.indexes:
            kept = indexes[str(index.name)]
            assert kept["column_names"] == [column.name for column in index.columns]
            assert bool(kept["unique"]) == bool(index.unique)
            partial = any("where" in option for option in kept.get("dialect_options", {}))
            assert partial == bool(index.dialect_kwargs)
    fresh.close()
    store.close()


def test_preparing_again_changes_nothing(store: Store) -> None:
    store.prepare()
    epoch = store.acquire("test", 0.0)
    store.prepare()

    assert store.acquire("test", 0.0) == epoch + 1
    store.close()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(store: Store) -> None:
    store.prepare()
    with store._writer.begin() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(SchemaTooNew, match="9999"):
        store.prepare()

    with store.reading() as tx:
        assert tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    store.close()


def test_a_new_database_that_another_is_creating_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, begun = tmp_path / "new.db", threading.Event()

    def switch(cursor: sqlite3.Cursor, really: Callable[[sqlite3.Cursor], None] = callback.store._log_ahead) -> None:
        begun.set()
        really(cursor)

    monkeypatch.setattr(callback.store, "_log_ahead", switch)
    with closing(sqlite3.connect(file, isolation_level=None)) as another, ThreadPoolExecutor(1) as thread:
        another.execute("BEGIN IMMEDIATE")
        store = Store(f"sqlite:///{file}")
        preparing = thread.submit(store.prepare)
        assert begun.wait(30)
        with pytest.raises(TimeoutError):
            preparing.result(0.5)
        another.execute("COMMIT")
        preparing.result(30)
        store.close()


def test_trackers_that_start_at_once_on_an_empty_database_get_along(empty_url: str) -> None:
    stores = [Store(empty_url) for _ in range(4)]
    barrier = threading.Barrier(len(stores))
    epochs: list[int] = []
    errors: list[Exception] = []

    def start(store: Store) -> None:
        barrier.wait()
        try:
            store.prepare()
            epochs.append(store.acquire("test", 0.0))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert errors == []
    assert sorted(epochs) == [1, 2, 3, 4]
    for store in stores:
        store.close()


def test_migrations_lead_back_to_nothing(store: Store) -> None:
    store.prepare()
    with store._writer.begin() as connection:
        config = store._alembic()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    assert set(sa.inspect(store._writer).get_table_names()) <= {"alembic_version"}
    store.close()
