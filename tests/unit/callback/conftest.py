import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from callback import courier
from callback.config import TrackerConfig
from callback.tracker import JobTracker
from stress.callback_server import CallbackServer
from tests.unit.callback.tracker_kit import Desk, FolderPictures, ManualClock, StartDesk, crash


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is moved by hand: what has become due must be noticed soon, by the real one."""
    monkeypatch.setattr(courier, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(courier, "RECORD_AGAIN_AFTER_S", 0.02)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pictures(tmp_path: Path) -> FolderPictures:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return FolderPictures(folder)


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
async def start(clock: ManualClock, pictures: FolderPictures, store_url: str) -> AsyncIterator[StartDesk]:
    """Start trackers on the test's store; a second one deposes the first. They are ended with the test."""
    desks: list[Desk] = []

    async def start_desk(**settings: object) -> Desk:
        config = TrackerConfig(
            **{"store_url": store_url, "tick_s": 0.02, "callback_allow_loopback": True, **settings}  # type: ignore[arg-type]
        )
        desk = Desk(JobTracker(config, pictures, clock=clock), config, clock, pictures)
        desks.append(desk)
        await desk.tracker.start()
        return desk

    yield start_desk
    await asyncio.gather(*(crash(desk.tracker) for desk in desks))


@pytest.fixture
async def desk(start: StartDesk) -> Desk:
    """A tracker with the default settings, short ticks, and callbacks to loopback allowed."""
    return await start()


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer() as server:
        yield server
