"""The dispatcher: whatever becomes of an attempt, the tracker is told, and the next job is claimed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import FINISHED, STARTED, FakeHandle, FakeTracker, claim, until, view
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from callback.records import Finish, Release
from callback.states import JobState
from deployments.errors import EngineBusy, EngineUnhealthy
from deployments.render import RenderFailed
from serve_app import dispatcher as module
from serve_app.dispatcher import Dispatcher


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
