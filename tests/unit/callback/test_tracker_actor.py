"""The tracker as an actor: what replaces it, and what becomes of one that was told to retire."""

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from callback import actor
from callback.actor import TrackerActor
from callback.config import TrackerConfig
from callback.store import Store
from tests.unit.callback.tracker_kit import FolderPictures


@pytest.fixture
def config(tmp_path: Path) -> TrackerConfig:
    return TrackerConfig(store_url=f"sqlite:///{tmp_path / 'jobs.db'}")


async def test_a_retired_tracker_ends_its_process_if_nobody_else_does(
    config: TrackerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exited = asyncio.Event()
    monkeypatch.setattr(os, "_exit", lambda _: exited.set())
    monkeypatch.setattr(actor, "EXIT_AFTER_RETIREMENT_S", 0.01)
    tracker = TrackerActor(config, FolderPictures(tmp_path))
    await tracker.start()
    assert not exited.is_set()
    await tracker.retire()
    await asyncio.wait_for(exited.wait(), 5)


def test_another_picture_store_is_another_configuration(config: TrackerConfig) -> None:
    assert config.fingerprint("/here") == replace(config).fingerprint("/here")
    assert config.fingerprint("/here") != config.fingerprint("/there")
    assert config.fingerprint("/here") != replace(config, lease_s=1.0).fingerprint("/here")


def test_the_store_url_is_not_shown(config: TrackerConfig) -> None:
    assert "jobs.db" not in repr(config)


def test_an_error_of_a_statement_does_not_carry_its_values(
    config: TrackerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(config.store_url)
    store.prepare()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(sa.exc.IntegrityError) as failed, store.transaction(store.acquire("test", 0.0)) as tx:
        tx.execute(
            sa.text("insert into jobs (key, owner) values (:key, :secret)"), {"key": "k", "secret": "do-not-show"}
        )
    store.close()
    assert "do-not-show" not in str(failed.value)
    assert "do-not-show" not in caplog.text
