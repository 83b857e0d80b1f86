"""One attempt: what is reported of it, whatever its replica tells or does not tell."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fakes import FINISHED, STARTED, FakeHandle, claim
from ray.exceptions import GetTimeoutError, RayTaskError

from callback.records import Finish, Release
from callback.states import JobState
from deployments.render import RenderProgress
from serve_app import attempt as module
from serve_app.attempt import Attempt


@dataclass
class Told:
    """Notes what the attempt tells while it runs."""

    no_storage_for: list[str] = field(default_factory=list)

    def started(self) -> None: ...

    def finished(self, seconds: dict[str, float]) -> None: ...

    def no_replica(self, reason: str) -> None: ...

    def no_storage(self, reason: str) -> None:
        self.no_storage_for.append(reason)


async def outcome(script: list[Any], told: Told | None = None, job_timeout_s: float = 60.0) -> Finish | Release:
    handle = FakeHandle(script)
    async with asyncio.timeout(10):
        return await Attempt(claim(), handle.remote, job_timeout_s, told or Told()).outcome()


@pytest.fixture
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_GRACE_S", 0.05)
    monkeypatch.setattr(module, "STORING_GRACE_S", 0.3)


@pytest.mark.parametrize(
    "error",
    [GetTimeoutError("no answer"), RayTaskError("render", "", TimeoutError("of a socket")).as_instanceof_cause()],
    ids=["of-ray", "of-the-replica"],
)
async def test_a_timeout_that_is_not_the_jobs_gives_it_back(error: Exception) -> None:
    report = await outcome([STARTED, error])
    assert isinstance(report, Release)


async def test_somebody_elses_picture_is_not_reported() -> None:
    other = replace(FINISHED, artifact=replace(FINISHED.artifact, key="other/1.png"))
    report = await outcome([STARTED, other])
    assert isinstance(report, Release)
    assert report.blamed


@pytest.mark.usefixtures("_no_grace")
@pytest.mark.parametrize("stage", ["denoising", "decoding"])
async def test_a_job_that_its_replica_does_not_end_in_time_has_timed_out(stage: Any) -> None:
    report = await outcome([STARTED, RenderProgress(stage, 1, 4), asyncio.Event(), FINISHED], job_timeout_s=0.05)
    assert isinstance(report, Finish)
    assert (report.state, report.error_code) == (JobState.TIMEOUT, "job_timeout")


@pytest.mark.usefixtures("_no_grace")
async def test_a_picture_that_cannot_be_stored_in_time_is_rendered_again_without_blame() -> None:
    told, storing = Told(), RenderProgress("storing", 4, 4)
    report = await outcome([STARTED, storing, asyncio.Event(), FINISHED], told, job_timeout_s=0.05)
    assert isinstance(report, Release)
    assert not report.blamed
    assert told.no_storage_for


@pytest.mark.usefixtures("_no_grace")
async def test_a_picture_that_is_stored_late_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STORING_GRACE_S", 30.0)
    stored = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stored.set)
    report = await outcome([STARTED, RenderProgress("storing", 4, 4), stored, FINISHED], job_timeout_s=0.05)
    assert isinstance(report, Finish)
    assert report.state is JobState.COMPLETED
