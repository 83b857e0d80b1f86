"""How many jobs a dispatcher claims, when, and how they travel."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import FINISHED, STARTED, FakeHandle, FakeTracker, claim, until

from callback.records import Finish
from deployments.models import REPLICA_PLACES
from serve_app import dispatcher as module
from serve_app.dispatcher import Dispatcher
from serve_app.pace import Pace


async def test_an_accepted_job_is_claimed_before_the_change_stream_tells_of_it(
    tracker: FakeTracker, start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 30.0)
    dispatcher = start(FakeHandle([STARTED, FINISHED]), has_queued=lambda _: False)
    await asyncio.sleep(0)
    tracker.claims = [claim()]
    dispatcher.expect()
    await until(lambda: bool(tracker.reports))


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [
        ({"denoising": 0.005}, 5, REPLICA_PLACES),
        ({"denoising": 0.26, "storing": 0.26}, 1, 2),  # they take too long together
    ],
)
async def test_more_are_claimed_ahead_where_quick_jobs_end_while_others_are_fetched(
    tracker: FakeTracker, start: Callable[..., Dispatcher], seconds: dict[str, float], least: int, most: int
) -> None:
    tracker.claims, tracker.claim_s = [claim(f"k{n}") for n in range(60)], 0.05
    start(FakeHandle(*[[STARTED, replace(FINISHED, seconds=seconds)]] * 60))
    await until(lambda: len(tracker.reports) == 60, timeout_s=60)
    assert tracker.limits[0] == 1
    assert least <= max(tracker.limits) <= most


@pytest.mark.parametrize(
    ("others", "asked"),
    [
        (0, 21),
        (13, 8),  # another ingress replica has claimed some of what the devices can end
        (40, 5),  # ... or all of it, and may have died with it
        (REPLICA_PLACES - 2, 2),  # no more than the replicas take
        (REPLICA_PLACES, 1),
    ],
)
async def test_ingress_replicas_share_what_the_devices_can_end(
    tracker: FakeTracker,
    start: Callable[..., Dispatcher],
    monkeypatch: pytest.MonkeyPatch,
    others: int,
    asked: int,
) -> None:
    class QuickPace(Pace):
        def ahead(self, devices: int) -> int:
            return 20 * devices

    monkeypatch.setattr(module, "Pace", QuickPace)
    start(FakeHandle(), processing=lambda: {f"o{n}" for n in range(others)}, has_queued=lambda _: True)
    await until(lambda: bool(tracker.limits))
    assert tracker.limits[0] == asked


@pytest.mark.parametrize(
    ("devices", "others", "asked"),
    [
        (1, 0, 1),  # one waits, whatever there is
        (8, 0, 8),  # no device is without
        (8, 6, 2),  # ... but another ingress replica has given six of them a job
        (8, 99, 1),
    ],
)
async def test_idle_devices_are_given_a_job_at_once_but_not_twice(
    tracker: FakeTracker, start: Callable[..., Dispatcher], devices: int, others: int, asked: int
) -> None:
    tracker.claims = [claim("k1")]
    options = {
        "devices": lambda: devices,
        "processing": lambda: {f"o{n}" for n in range(others)},
        "has_queued": lambda _: True,
    }
    start(FakeHandle([asyncio.Event(), STARTED, FINISHED]), **options)
    await until(lambda: bool(tracker.limits))
    assert tracker.limits[0] == asked


async def test_a_job_that_ended_here_does_not_take_a_place_until_the_change_stream_tells_of_it(
    tracker: FakeTracker, start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDED_FOR_S", 0.5)
    processing = {"k1"}

    tracker.claims = [claim("k1")]
    options = {"devices": lambda: 2, "processing": lambda: processing, "has_queued": lambda _: True}
    start(FakeHandle([STARTED, FINISHED]), **options)
    await until(lambda: bool(tracker.reports) and tracker.limits[-1] == 2)
    # Somebody else's then, as far as anybody knows.
    await until(lambda: tracker.limits[-1] == 1)


async def test_only_quick_jobs_may_come_without_a_start(tracker: FakeTracker, start: Callable[..., Dispatcher]) -> None:
    handle = FakeHandle(*[[STARTED, FINISHED]] * 60)
    tracker.claims, tracker.claim_s = [claim(f"k{n}") for n in range(60)], 0.05
    start(handle)
    await until(lambda: len(tracker.reports) == 60, timeout_s=60)
    assert all(isinstance(report, Finish) for report in tracker.reports)
    allowed = [request.start_may_be_left_out for request in handle.requests]
    assert not allowed[0]
    assert allowed[-1]


async def test_quick_jobs_travel_together_but_not_what_comes_again(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims = [claim(f"k{n}", attempt=1 + (n % 10 == 9)) for n in range(200)]
    tracker.claim_s = 0.05
    handle = FakeHandle(*[[FINISHED]] * 200)
    start(handle)
    await until(lambda: len(tracker.reports) == 200, timeout_s=60)
    assert all(isinstance(report, Finish) for report in tracker.reports)
    together = [request.artifact_key for requests in handle.together for request in requests]
    assert len(together) > 50
    assert len(handle.together) < len(together) / 2
    assert all(key.endswith("/1.png") for key in together), "those of a second attempt are sent alone"
