"""The bounds of queue and time, each small enough here to be reached."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from deployments.models import ModelSettings, SimulatedOptions
from stress.client import DarkroomClient
from stress.errors import ServiceBusyError
from tests.apps import App

TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1}
OPEN_JOBS = 5
JOB_TIMEOUT_S = 1.5
QUEUE_TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def narrow(deploy: Callable[..., App]) -> App:
    """An application with one slow replica and tight limits."""
    simulated = SimulatedOptions(step_seconds=0.1)
    return deploy(
        "narrow",
        models=[ModelSettings(name="slow", engine="simulated", simulated=simulated)],
        max_open_jobs=OPEN_JOBS,
        job_timeout_s=JOB_TIMEOUT_S,
        queue_timeout_s=QUEUE_TIMEOUT_S,
        shed_expired=True,
        max_pixels=256 * 256,
    )


@pytest.fixture
def client(narrow: App) -> Iterator[DarkroomClient]:
    with narrow.client() as client:
        yield client
        for job in client.jobs(limit=500).inference_jobs:
            if not job.is_final:
                client.wait(job.job_id, timeout_s=30)


def test_a_job_that_renders_too_long_times_out_and_the_next_one_is_rendered(client: DarkroomClient) -> None:
    long = client.submit(**{**TINY, "num_inference_steps": 100})
    short = client.submit(**TINY)
    status = client.wait(long.job_id, timeout_s=20)
    assert (status.status, status.error_code) == ("timeout", "job_timeout")
    assert "1.5 s" in str(status.error)
    assert client.wait(short.job_id, timeout_s=20).status == "completed"


@pytest.mark.defect("D19")
def test_more_open_jobs_than_allowed_get_429_and_a_time_to_come_back(narrow: App, client: DarkroomClient) -> None:
    bodies = [{**TINY, "num_inference_steps": 8, "job_id": f"full-{n}"} for n in range(OPEN_JOBS)]
    accepted = [client.submit(**body) for body in bodies]
    answer = httpx.post(f"{narrow.url}/inference", json=TINY, trust_env=False)
    assert (answer.status_code, answer.json()["error_code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) > 0
    # A repeat of an accepted submission is answered all the same (same id, same body).
    assert httpx.post(f"{narrow.url}/inference", json=bodies[-1], trust_env=False).status_code == 200
    for one in accepted:
        assert client.wait(one.job_id, timeout_s=30).is_final
    assert client.wait(client.submit(**TINY).job_id, timeout_s=20).status == "completed"


def test_a_job_that_waits_too_long_times_out_in_the_queue(client: DarkroomClient) -> None:
    jobs = [client.submit(**{**TINY, "num_inference_steps": 100}) for _ in range(OPEN_JOBS)]
    codes = [client.wait(job.job_id, timeout_s=30).error_code for job in jobs]
    assert codes[0] == "job_timeout"
    assert codes[-1] == "queue_timeout"


@pytest.mark.defect("D18")
def test_an_expired_job_does_not_reach_the_device_when_shedding_is_on(client: DarkroomClient) -> None:
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    blocking = client.submit(**{**TINY, "num_inference_steps": 10})
    shed = client.wait(client.submit(**TINY, expiry=past).job_id, timeout_s=20)
    assert (shed.status, shed.error_code, shed.started_at) == ("failed", "expired", None)
    assert client.wait(blocking.job_id, timeout_s=20).status == "completed"


@pytest.mark.usefixtures("client")  # which waits for the job that is accepted, so that the next test finds none open
def test_more_pixels_than_configured_are_refused_with_the_limit(narrow: App) -> None:
    answer = httpx.post(f"{narrow.url}/inference", json={**TINY, "width": 512}, trust_env=False)
    assert answer.status_code == 200  # 512 x 64 is less than 256 x 256
    answer = httpx.post(f"{narrow.url}/inference", json={**TINY, "width": 512, "height": 512}, trust_env=False)
    assert answer.status_code == 422
    assert "65536" in answer.json()["detail"][0]["msg"]


def test_a_full_queue_is_told_by_health_but_pollers_are_not_cut_off(narrow: App, client: DarkroomClient) -> None:
    jobs = [client.submit(**{**TINY, "num_inference_steps": 8}) for _ in range(OPEN_JOBS)]
    answer = httpx.get(f"{narrow.url}/health", trust_env=False)
    assert (answer.status_code, answer.json()["status"], answer.json()["accepting"]) == (200, "degraded", False)
    for job in jobs:
        client.wait(job.job_id, timeout_s=30)


def test_a_busy_service_is_an_error_of_its_own_for_the_client(narrow: App, client: DarkroomClient) -> None:
    jobs = [client.submit(**{**TINY, "num_inference_steps": 8}) for _ in range(OPEN_JOBS)]
    with pytest.raises(ServiceBusyError) as busy:
        client.submit(**TINY)
    assert busy.value.retry_after_s
    for job in jobs:
        client.wait(job.job_id, timeout_s=30)
