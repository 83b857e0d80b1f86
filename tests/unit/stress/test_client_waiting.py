"""How the client waits for a job: held polls, polls at an interval, outages and refusals."""

import asyncio

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse
from scripted_service import ScriptedService

from stress.client import AsyncDarkroomClient
from stress.errors import JobNotFoundError, JobWaitTimeoutError, UnauthorizedError
from stress.wire import JobState


@pytest.fixture
def service(scripted_service: ScriptedService) -> ScriptedService:
    return scripted_service


@pytest.mark.parametrize("final", ["completed", "failed", "timeout"])
async def test_wait_ends_with_each_final_status(service: ScriptedService, final: str) -> None:
    service.states["job-0"] = ["queued", "queued", "processing", final]
    async with AsyncDarkroomClient(service.server.url) as client:
        status = await client.wait("job-0", timeout_s=20, poll_interval_s=0.01)

    assert status.status == final
    assert len(service.waits) == 4


async def test_wait_asks_the_service_to_hold_its_answer(service: ScriptedService) -> None:
    service.states["job-0"] = ["held", "completed"]
    async with AsyncDarkroomClient(service.server.url) as client:
        await client.wait("job-0", timeout_s=10.9, poll_interval_s=0.1)
        await client.wait("job-0", timeout_s=600)

    assert service.waits == ["10", "10", "25"]


async def test_wait_polls_a_service_that_does_not_hold_at_the_interval(service: ScriptedService) -> None:
    service.states["job-0"] = ["processing"]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobWaitTimeoutError, match="was last processing") as caught:
            await client.wait("job-0", timeout_s=0.5, poll_interval_s=0.2)

    assert isinstance(caught.value, TimeoutError)
    assert 1 <= len(service.waits) <= 3


async def test_wait_for_an_unknown_id_fails_at_once(service: ScriptedService) -> None:
    service.answers["/inference/status/none"] = [JSONResponse({"detail": "Job not found"}, 404)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobNotFoundError, match=r"Job not found\. Check the job id"):
            await client.wait("none", timeout_s=60)

    assert service.paths["GET /inference/status/none"] == 1


async def test_wait_outlasts_an_outage_once_the_job_was_seen(service: ScriptedService) -> None:
    service.states["job-0"] = ["queued"]
    async with AsyncDarkroomClient(service.server.url) as client:
        waiting = asyncio.create_task(client.wait("job-0", timeout_s=30, poll_interval_s=0.02))
        await asyncio.to_thread(service.asked.wait, 10)
        await asyncio.to_thread(service.server.stop)
        service.states["job-0"] = ["completed"]
        assert not waiting.done()
        await asyncio.to_thread(service.server.start)
        assert (await waiting).status is JobState.COMPLETED


async def test_wait_outlasts_busy_answers_but_not_a_refusal(service: ScriptedService) -> None:
    path = "/inference/status/job-0"
    service.answers[path] = [
        JSONResponse({"id": "job-0", "status": "queued"}),
        Response(status_code=503),
        Response(status_code=500),
        Response(status_code=401),
    ]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnauthorizedError):
            await client.wait("job-0", timeout_s=30, poll_interval_s=0.01)

    assert service.answers[path] == []


async def test_wait_polls_at_the_interval_however_often_the_status_changes(service: ScriptedService) -> None:
    service.states["job-0"] = ["queued", "processing"] * 50
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobWaitTimeoutError):
            await client.wait("job-0", timeout_s=1.0, poll_interval_s=0.3)

    assert 1 <= len(service.waits) <= 5
