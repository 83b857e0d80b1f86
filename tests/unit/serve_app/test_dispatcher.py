"""The dispatcher: whatever becomes of an attempt, the tracker is told, and the next job is claimed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import FINISHED, STARTED, FakeHandle, FakeTracker, claim, until, view
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from callback.records import Claim, ClaimJobs, Finish, Release
from callback.states import JobState
from deployments.errors import EngineBusy, EngineUnhealthy
from deployments.models import REPLICA_PLACES
from deployments.render import RenderFailed
from serve_app import dispatcher as module
from serve_app.dispatcher import Dispatcher
from serve_app.pace import Pace


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


async def test_a_finished_picture_is_reported_with_the_moment_it_began(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims = [claim()]
    start(FakeHandle([STARTED, FINISHED]))
    await until(lambda: bool(tracker.reports))
    (report,) = tracker.reports
    assert isinstance(report, Finish)
    assert (report.state, report.attempt) == (JobState.COMPLETED, 1)
    assert report.started_at is not None


async def test_a_picture_that_comes_without_a_start_began_when_it_says(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims = [claim()]
    dispatcher = start(FakeHandle([replace(FINISHED, since_start_s=1000.0)]))
    dispatcher.no_replica("There was none.")
    await until(lambda: bool(tracker.reports), 10)
    (report,) = tracker.reports
    assert isinstance(report, Finish)
    assert report.started_at == pytest.approx(time.time() - 1000.0, abs=20)
    assert dispatcher.trouble is None


@pytest.mark.defect("D13")
@pytest.mark.parametrize(
    ("script", "blamed"),
    [
        ([RayActorError()], False),
        ([RayTaskError("render", "", EngineUnhealthy("The device is lost."))], False),
        ([STARTED, RayActorError()], True),
        ([DeploymentUnavailableError("m")], False),
        ([EngineBusy("full")], False),
        ([STARTED, RayServeException("odd")], True),
        ([STARTED, RuntimeError("a bug of ours")], True),
        ([STARTED], True),
        ([STARTED, RenderFailed("artifact_unwritable", "The disk is full.")], False),
    ],
)
async def test_an_attempt_that_ends_without_an_outcome_gives_the_job_back_and_the_next_one_is_claimed(
    tracker: FakeTracker, start: Callable[..., Dispatcher], script: list[Any], blamed: bool
) -> None:
    tracker.claims = [claim("k1"), claim("k2")]
    start(FakeHandle(script, [STARTED, FINISHED], on_cancel=DeploymentUnavailableError("m")))
    await until(lambda: len(tracker.reports) == 2)
    released, finished = tracker.reports
    assert isinstance(released, Release)
    assert (released.key, released.blamed) == ("k1", blamed)
    assert isinstance(finished, Finish)
    assert finished.key == "k2"


async def test_a_job_that_cannot_be_read_fails_alone(tracker: FakeTracker, start: Callable[..., Dispatcher]) -> None:
    tracker.claims = [claim("k1", request_json='{"from": "the future"}'), claim("k2")]
    start(FakeHandle([STARTED, FINISHED]))
    await until(lambda: len(tracker.reports) == 2)
    assert {(r.key, r.state) for r in tracker.reports if isinstance(r, Finish)} == {
        ("k1", JobState.FAILED),
        ("k2", JobState.COMPLETED),
    }


async def test_trouble_that_lasts_makes_the_pauses_longer_and_has_a_sentence(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims = [claim("k1", attempt=n) for n in range(1, 4)]
    dispatcher = start(FakeHandle(*[[DeploymentUnavailableError("m")]] * 3, [STARTED, FINISHED]))
    await until(lambda: len(tracker.reports) == 3)
    assert dispatcher.trouble is not None
    tracker.claims = [claim("k2")]
    await until(lambda: len(tracker.reports) == 4)
    assert dispatcher.trouble is None


async def test_a_replica_that_cannot_begin_does_not_get_its_job_again_at_once(
    tracker: FakeTracker, start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORTEST_PAUSE_S", 0.4)
    lost = RayTaskError("render", "", EngineUnhealthy("The device is lost."))
    tracker.claims = [claim("k1", attempt=1)]
    dispatcher = start(FakeHandle([lost], [STARTED, FINISHED]))
    await until(lambda: len(tracker.reports) == 1)
    released = time.monotonic()
    tracker.claims = [claim("k1", attempt=2)]
    await until(lambda: len(tracker.reports) == 2)
    assert time.monotonic() - released > 0.5 * module.SHORTEST_PAUSE_S
    assert dispatcher.trouble is None


async def test_an_outcome_is_offered_until_the_tracker_takes_it(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims, tracker.unavailable = [claim()], 3
    start(FakeHandle([STARTED, FINISHED]))
    await until(lambda: bool(tracker.reports))
    assert tracker.unavailable == 0


async def test_a_cancelled_job_is_stopped_and_reported_as_cancelled(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims = [claim()]
    handle = FakeHandle([STARTED, asyncio.Event(), FINISHED])
    dispatcher = start(handle)
    await handle.called.wait()
    dispatcher.notice(view(state=JobState.PROCESSING, cancel_requested=True))
    await until(lambda: bool(tracker.reports))
    (report,) = tracker.reports
    assert isinstance(report, Finish)
    assert (report.state, report.error_code) == (JobState.FAILED, "cancelled")


@pytest.mark.defect("D17")
async def test_a_cancel_that_came_before_the_claim_is_honoured(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims, tracker.cancelled = [claim()], {"k1"}
    start(FakeHandle([asyncio.Event(), STARTED, FINISHED]))
    await until(lambda: bool(tracker.reports))
    (report,) = tracker.reports
    assert isinstance(report, Finish)
    assert report.error_code == "cancelled"


async def test_a_lost_lease_stops_the_rendering_and_reports_nothing(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims, tracker.lost = [claim()], {"k1"}
    handle = FakeHandle([STARTED, asyncio.Event(), FINISHED])
    dispatcher = start(handle)
    await handle.called.wait()
    await until(lambda: not dispatcher._attempts)
    assert handle.responses[0].cancels
    assert tracker.reports == []


async def test_a_job_that_comes_back_to_the_same_dispatcher_is_kept_alive(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    go_on = asyncio.Event()
    handle = FakeHandle([STARTED, asyncio.Event(), FINISHED], [STARTED, go_on, FINISHED])
    tracker.claims = [claim(attempt=1)]
    dispatcher = start(handle)
    await handle.called.wait()
    tracker.claims = [claim(attempt=2)]
    dispatcher.notice(view())
    await until(lambda: len(handle.responses) == 2)
    await until(lambda: handle.responses[0].cancels > 0)
    before = len(tracker.renewals)
    await until(lambda: len(tracker.renewals) > before + 1)
    assert [one.attempt for one in tracker.renewals[-1].progress] == [2]
    go_on.set()
    await until(lambda: bool(tracker.reports))
    assert [report.attempt for report in tracker.reports] == [2]


@pytest.mark.defect("D21")
async def test_stopping_lets_a_started_job_finish_and_hands_an_unstarted_one_back(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    go_on = asyncio.Event()
    tracker.claims = [claim("k1"), claim("k2")]
    handle = FakeHandle([STARTED, go_on, FINISHED], [asyncio.Event(), STARTED, FINISHED])
    dispatcher = start(handle)
    await until(lambda: len(handle.responses) == 2)
    tracker.claims = [claim("k3")]
    stopping = asyncio.create_task(dispatcher.stop(5.0))
    await until(lambda: len(tracker.reports) == 1)
    go_on.set()
    await stopping
    handed_back, finished = tracker.reports
    assert isinstance(handed_back, Release)
    assert (handed_back.key, handed_back.blamed) == ("k2", False)
    assert isinstance(finished, Finish)
    assert (finished.key, finished.state) == ("k1", JobState.COMPLETED)
    assert tracker.claims, "a stopping dispatcher claimed a job"


async def test_stopping_ends_in_time_even_if_a_job_does_not(
    tracker: FakeTracker, start: Callable[..., Dispatcher]
) -> None:
    tracker.claims = [claim()]
    handle = FakeHandle([STARTED, asyncio.Event(), FINISHED])
    dispatcher = start(handle)
    await until(lambda: any(one.started_at for one in dispatcher._attempts.values()))
    await asyncio.wait_for(dispatcher.stop(0.05), 5)
    (report,) = tracker.reports
    assert isinstance(report, Release)
    assert not report.blamed


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
    class SlowTracker(FakeTracker):
        async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
            limits.append(command.limit)
            await asyncio.sleep(0.05)
            return await super().claim(command)

    limits: list[int] = []
    slow = SlowTracker(claims=[claim(f"k{n}") for n in range(60)])
    finished = replace(FINISHED, seconds=seconds)
    has_queued = {"has_queued": lambda _: bool(slow.claims)}
    start(FakeHandle(*[[STARTED, finished]] * 60), client=slow, **has_queued, devices=lambda: 1)
    await until(lambda: len(slow.reports) == 60, timeout_s=60)
    assert limits[0] == 1
    assert least <= max(limits) <= most


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
    start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch, others: int, asked: int
) -> None:
    class QuickPace(Pace):
        def ahead(self, devices: int) -> int:
            return 20 * devices

    limits: list[int] = []

    class Counting(FakeTracker):
        async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
            limits.append(command.limit)
            return await super().claim(command)

    monkeypatch.setattr(module, "Pace", QuickPace)
    options = {"devices": lambda: 1, "processing": lambda: {f"o{n}" for n in range(others)}}
    start(FakeHandle(), client=Counting(), has_queued=lambda _: True, **options)
    await until(lambda: bool(limits))
    assert limits[0] == asked


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
    limits: list[int] = []

    class Counting(FakeTracker):
        async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
            limits.append(command.limit)
            return await super().claim(command)

    counting = Counting(claims=[claim("k1")])
    options = {
        "devices": lambda: devices,
        "processing": lambda: {f"o{n}" for n in range(others)},
        "has_queued": lambda _: True,
    }
    start(FakeHandle([asyncio.Event(), STARTED, FINISHED]), client=counting, **options)
    await until(lambda: bool(limits))
    assert limits[0] == asked


async def test_a_job_that_ended_here_does_not_take_a_place_until_the_change_stream_tells_of_it(
    tracker: FakeTracker, start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDED_FOR_S", 0.5)
    limits: list[int] = []
    processing = {"k1"}

    class Counting(FakeTracker):
        async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
            limits.append(command.limit)
            return await super().claim(command)

    counting = Counting(claims=[claim("k1")])
    options = {"devices": lambda: 2, "processing": lambda: processing, "has_queued": lambda _: True}
    start(FakeHandle([STARTED, FINISHED]), client=counting, **options)
    await until(lambda: bool(counting.reports) and limits[-1] == 2)
    # Somebody else's then, as far as anybody knows.
    await until(lambda: limits[-1] == 1)


async def test_only_quick_jobs_may_come_without_a_start(start: Callable[..., Dispatcher]) -> None:
    class SlowTracker(FakeTracker):
        async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
            await asyncio.sleep(0.05)
            return await super().claim(command)

    handle = FakeHandle(*[[STARTED, FINISHED]] * 60)
    slow = SlowTracker(claims=[claim(f"k{n}") for n in range(60)])
    start(handle, client=slow, has_queued=lambda _: bool(slow.claims))
    await until(lambda: len(slow.reports) == 60, timeout_s=60)
    assert all(isinstance(report, Finish) for report in slow.reports)
    allowed = [request.start_may_be_left_out for request in handle.requests]
    assert not allowed[0]
    assert allowed[-1]


async def test_quick_jobs_travel_together_but_not_what_comes_again(start: Callable[..., Dispatcher]) -> None:
    class SlowTracker(FakeTracker):
        async def claim(self, command: ClaimJobs, **_: Any) -> tuple[Claim, ...]:
            await asyncio.sleep(0.05)
            return await super().claim(command)

    claims = [claim(f"k{n}", attempt=1 + (n % 10 == 9)) for n in range(200)]
    slow = SlowTracker(claims=claims)
    handle = FakeHandle(*[[FINISHED]] * 200)
    start(handle, client=slow, has_queued=lambda _: bool(slow.claims))
    await until(lambda: len(slow.reports) == 200, timeout_s=60)
    assert all(isinstance(report, Finish) for report in slow.reports)
    together = [request.artifact_key for requests in handle.together for request in requests]
    assert len(together) > 50
    assert len(handle.together) < len(together) / 2
    assert all(key.endswith("/1.png") for key in together), "those of a second attempt are sent alone"


@pytest.mark.parametrize("wish", ["cancelled", "abandoned"])
async def test_a_job_that_its_replica_stopped_is_reported_by_who_wanted_it(
    tracker: FakeTracker, start: Callable[..., Dispatcher], wish: str
) -> None:
    tracker.claims = [claim()]
    go_on = asyncio.Event()
    dispatcher = start(FakeHandle([STARTED, go_on, RenderFailed("cancelled", "The job was cancelled.")]))
    await until(lambda: any(one.started_at for one in dispatcher._attempts.values()))
    (attempt,) = dispatcher._attempts.values()
    setattr(attempt, wish, True)
    go_on.set()
    await until(lambda: bool(tracker.reports))
    (report,) = tracker.reports
    if wish == "cancelled":
        assert isinstance(report, Finish)
        assert report.error_code == "cancelled"
    else:
        assert isinstance(report, Release)
        assert not report.blamed


async def test_what_many_jobs_meet_at_once_counts_once(
    tracker: FakeTracker, start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORTEST_PAUSE_S", 10.0)
    tracker.claims = [claim(f"k{n}") for n in range(6)]
    gone = DeploymentUnavailableError("no replicas")
    dispatcher = start(FakeHandle(*[[gone]] * 6), devices=lambda: 6)
    await until(lambda: len(tracker.reports) == 6)
    assert dispatcher._replicas._length_s == 10.0
