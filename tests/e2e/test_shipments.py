"""Several jobs in one call of Ray Serve, with real replicas: each can be stopped without the others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.models import ModelSettings, SimulatedOptions
from deployments.render import RenderEvent, RenderFailed, RenderFinished, RenderRequest
from deployments.text_to_image import deployment_for
from serve_app.shipments import Shipments, ShippedJob

LONG = 3000
"""Steps of a job that takes a minute: longer than a test waits."""
REQUEST = RenderRequest("job", "ab/job-1.png", "a red circle", 64, 64, 2, 1.0, 1, timeout_s=300)


@pytest.fixture(scope="module")
def handle(serve_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeploymentHandle]:
    """Two replicas: the one that has a job must be found."""
    model = ModelSettings(name="together", engine="simulated", simulated=SimulatedOptions(step_seconds=0.02))
    replicas = deployment_for(model, "cpu").options(num_replicas=2)
    app = replicas.bind(model, str(tmp_path_factory.mktemp("together")), "cpu")
    yield serve.run(app, name="together", route_prefix=None).options(stream=True)
    serve.delete("together", _blocking=False)


def send(shipments: Shipments, *steps: int) -> list[ShippedJob]:
    return [
        shipments.send(replace(REQUEST, job_id=f"j{n}", artifact_key=f"ab/j{n}-1.png", num_inference_steps=count))
        for n, count in enumerate(steps)
    ]


async def end_of(job: ShippedJob) -> RenderEvent | None:
    last = None
    async with asyncio.timeout(30):
        async for event in job:
            last = event
    return last


def test_one_job_of_a_call_is_stopped_and_the_others_are_rendered(handle: DeploymentHandle) -> None:
    async def scenario() -> list[RenderEvent | None]:
        shipments = Shipments(handle, devices=lambda: 1, together=lambda: 8)
        first, long, last = send(shipments, 2, LONG, 2)
        ends = [await end_of(first)]
        long.cancel()
        ends += await asyncio.gather(end_of(long), end_of(last))
        await shipments.close()
        return ends

    first, long, last = asyncio.run(scenario())
    assert isinstance(first, RenderFinished)
    assert first.artifact.key == "ab/j0-1.png"
    assert isinstance(long, RenderFailed)
    assert long.error_code == "cancelled"
    assert isinstance(last, RenderFinished)
    assert last.artifact.key == "ab/j2-1.png"


def test_a_call_whose_jobs_are_all_to_stop_ends_at_once_and_frees_its_replica(handle: DeploymentHandle) -> None:
    async def stopped(job: ShippedJob) -> bool:
        try:
            end = await end_of(job)
        except (RayError, RayServeException):
            return True
        return isinstance(end, RenderFailed) and end.error_code == "cancelled"

    async def scenario() -> tuple[list[bool], list[RenderEvent | None]]:
        shipments = Shipments(handle, devices=lambda: 2, together=lambda: 8)
        jobs = send(shipments, LONG, LONG, LONG, LONG)
        # Both devices have begun.
        async with asyncio.timeout(30):
            await asyncio.gather(*(anext(job) for job in jobs[:2]))
        for job in jobs:
            job.cancel()
        ends = await asyncio.gather(*(stopped(job) for job in jobs))
        rendered = await asyncio.gather(*(end_of(job) for job in send(shipments, 2, 2)))
        await shipments.close()
        return ends, rendered

    ends, rendered = asyncio.run(scenario())
    assert ends == [True] * 4
    assert all(isinstance(end, RenderFinished) for end in rendered)


@serve.deployment(name="earlier")
class Earlier:
    """A replica of an earlier release, as far as it matters here: it takes one job in a call."""

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        yield RenderFailed("invalid_prompt", request.job_id)


@pytest.mark.usefixtures("serve_url")
def test_replicas_that_take_one_job_in_a_call_get_them_singly() -> None:
    async def scenario() -> list[RenderEvent | None]:
        shipments = Shipments(earlier, devices=lambda: 1, together=lambda: 8)
        ends = await asyncio.gather(*(end_of(job) for job in send(shipments, 2, 2, 2)))
        await shipments.close()
        return ends

    earlier = serve.run(Earlier.bind(), name="earlier", route_prefix=None).options(stream=True)
    try:
        ends = asyncio.run(scenario())
    finally:
        serve.delete("earlier", _blocking=False)
    assert ends == [RenderFailed("invalid_prompt", f"j{n}") for n in range(3)]
