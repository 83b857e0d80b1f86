"""A dispatcher with a tracker and replicas of the tests."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakes import FakeHandle, FakeTracker

from serve_app import dispatcher as module
from serve_app.dispatcher import Dispatcher


@pytest.fixture
def tracker() -> FakeTracker:
    return FakeTracker()


@pytest.fixture
async def start(tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Dispatcher]]:
    started: list[Dispatcher] = []
    monkeypatch.setattr(module, "SHORTEST_PAUSE_S", 0.02)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(module, "RENEW_EVERY_S", 0.02)
    monkeypatch.setattr(module, "TELL_EVERY_S", 0.0)

    def start_one(handle: FakeHandle, **options: Any) -> Dispatcher:
        values = {"model": "m", "job_timeout_s": 60.0, "holder": "me", "has_queued": lambda _: bool(tracker.claims)}
        values["is_cancelled"] = lambda key: key in tracker.cancelled
        values["devices"] = lambda: 1
        values["processing"] = set
        dispatcher = Dispatcher(handle=handle, **values | {"client": tracker} | options)  # type: ignore[arg-type]
        started.append(dispatcher)
        dispatcher.start()
        return dispatcher

    yield start_one
    for dispatcher in started:
        await dispatcher.stop(0.0)
