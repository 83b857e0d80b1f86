"""What users do with a job besides waiting: cancel, follow, repeat, list."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from stress.errors import ConflictError, JobNotFoundError, PictureNotFoundError
from stress.wire import JobStatus
from tests.apps import App
from tests.e2e.conftest import SECRET

TINY = {"prompt": "x", "model": "simulated", "width": 64, "height": 64}
STEP_S = 0.02
LONG = {**TINY, "num_inference_steps": 100}


def wait_until(client: DarkroomClient, job_id: str, stage: str) -> JobStatus:
    """Poll until the job is in `stage`; the poll itself is the pause."""
    deadline = time.monotonic() + 20
    while (status := client.status(job_id)).stage != stage:
        assert time.monotonic() < deadline, status
        assert not status.is_final, status
    return status


@pytest.mark.defect("D17")
def test_a_running_job_shows_steps_and_stops_when_it_is_cancelled(
    client: DarkroomClient, receiver: CallbackServer
) -> None:
    job_id = client.submit(**LONG, callback_url=receiver.callback_url, callback_secret=SECRET).job_id
    running = wait_until(client, job_id, "denoising")
    assert running.status == "processing"
    assert running.steps == 100
    client.cancel(job_id)
    status = client.wait(job_id, timeout_s=20)
    assert status.started_at is not None
    assert status.completed_at is not None
    assert (status.completed_at - status.started_at).total_seconds() < 100 * STEP_S, "it was rendered to its end"
    assert (status.status, status.error_code) == ("failed", "cancelled")
    (callback,) = receiver.wait_for(job_id)
    assert (callback.status, callback.has_image) == ("failed", False)
    with pytest.raises(PictureNotFoundError):
        client.result(job_id)


@pytest.mark.defect("D17")
def test_queued_jobs_have_positions_and_are_cancelled_at_once(client: DarkroomClient) -> None:
    blocking = client.submit(**LONG).job_id
    wait_until(client, blocking, "denoising")
    waiting = [client.submit(**TINY, num_inference_steps=1).job_id for _ in range(4)]
    positions = [client.status(job_id).queue_position for job_id in waiting]
    assert positions == sorted(p for p in positions if p is not None)
    last = waiting[-1]
    client.cancel(last)
    # At once, and for whoever asks after the answer.
    status = client.status(last)
    assert (status.status, status.error_code) == ("failed", "cancelled")
    assert client.status(blocking).status == "processing"
    client.cancel(blocking)
    for job_id in waiting[:-1]:
        assert client.wait(job_id, timeout_s=20).status == "completed"


def test_cancelling_what_has_ended_is_refused_unless_it_was_cancelled(client: DarkroomClient) -> None:
    job_id = client.submit(**TINY, num_inference_steps=1).job_id
    client.wait(job_id)
    with pytest.raises(ConflictError):
        client.cancel(job_id)
    assert client.status(job_id).status == "completed"
    other = client.submit(**LONG).job_id
    client.cancel(other)
    client.wait(other)
    client.cancel(other)
    with pytest.raises(JobNotFoundError):
        client.cancel("nobody")


def test_a_long_poll_answers_when_the_job_ends(http: httpx.Client) -> None:
    job_id = http.post("/inference", json={**TINY, "num_inference_steps": 20}).json()["job_id"]
    began = time.monotonic()
    status = http.get(f"/inference/status/{job_id}", params={"wait": 25}).json()
    assert status["status"] == "completed"
    assert time.monotonic() - began < 10


def test_a_long_poll_that_is_too_short_shows_the_job_as_it_is(http: httpx.Client, client: DarkroomClient) -> None:
    job_id = client.submit(**LONG).job_id
    status = http.get(f"/inference/status/{job_id}", params={"wait": 0.2}).json()
    assert status["status"] in {"queued", "processing"}
    client.cancel(job_id)


def test_the_same_id_and_body_is_the_same_job_and_another_body_is_refused(http: httpx.Client) -> None:
    body = {**LONG, "job_id": "repeated"}
    first, second = http.post("/inference", json=body), http.post("/inference", json=body)
    other = http.post("/inference", json={**body, "prompt": "another"})
    assert first.status_code == second.status_code == 200
    assert first.json()["seed"] == second.json()["seed"]
    assert other.status_code == 409
    assert other.json()["error_code"] == "job_id_in_use"
    http.delete("/inference/repeated")


@pytest.mark.defect("D4")
@pytest.mark.defect("D5")
def test_a_reused_id_gets_its_own_picture_never_the_old_one(client: DarkroomClient, receiver: CallbackServer) -> None:
    pictures = []
    for seed in (1, 2):
        client.submit(
            **TINY,
            num_inference_steps=10,
            seed=seed,
            job_id="reused",
            callback_url=receiver.callback_url,
            callback_secret=SECRET,
        )
        # While the second job runs, the first one's picture must not be shown under the id.
        early = client.status("reused")
        assert early.sha256 is None or early.seed == seed
        assert client.wait("reused", timeout_s=20).seed == seed
        pictures.append(client.result("reused"))
    first, second = receiver.wait_for("reused", count=2)
    assert pictures[0] != pictures[1]
    assert first.sha256 != second.sha256
    assert first.webhook_id != second.webhook_id


@pytest.mark.defect("D8")
def test_an_idempotency_key_makes_one_job_of_many_submissions(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "only-once"}

    def submit(_: int) -> httpx.Response:
        return http.post("/inference", json={**TINY, "num_inference_steps": 1}, headers=headers)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(submit, range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    other = http.post("/inference", json={**TINY, "num_inference_steps": 2}, headers=headers)
    assert (other.status_code, other.json()["error_code"]) == (422, "idempotency_key_reused")


@pytest.mark.defect("D2")
def test_the_job_list_is_paged_and_filtered(client: DarkroomClient) -> None:
    ids = [client.submit(**TINY, num_inference_steps=1).job_id for _ in range(5)]
    for job_id in ids:
        client.wait(job_id)
    seen: list[str] = []
    cursor = None
    while True:
        page = client.jobs(limit=2, cursor=cursor, status="completed")
        assert len(page.inference_jobs) <= 2
        assert {job.status for job in page.inference_jobs} == {"completed"}
        seen += [job.job_id for job in page.inference_jobs]
        cursor = page.next_cursor
        if cursor is None or set(ids) <= set(seen):
            break
    assert [job_id for job_id in seen if job_id in ids] == ids[::-1]
    assert len(seen) == len(set(seen))


def test_a_client_that_goes_away_in_mid_submit_harms_nobody_else(app: App, client: DarkroomClient) -> None:
    def cut(_: int) -> None:
        try:
            httpx.post(f"{app.url}/inference", json={**TINY, "num_inference_steps": 1}, timeout=0.005, trust_env=False)
        except httpx.TimeoutException:
            return

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(cut, range(64)))
        answers = list(threads.map(lambda _: client.submit(**TINY, num_inference_steps=1), range(16)))
    assert all(client.wait(answer.job_id, timeout_s=30).status == "completed" for answer in answers)


@pytest.mark.defect("D13")
def test_a_failed_job_says_why_and_the_next_one_is_rendered(client: DarkroomClient) -> None:
    for word, code in (("[fail]", "render_error"), ("[oom]", "out_of_memory")):
        failed = client.wait(client.submit(**{**TINY, "prompt": word}).job_id, timeout_s=20)
        assert (failed.status, failed.error_code) == ("failed", code)
        assert failed.error
    fine = client.wait(client.submit(**TINY, num_inference_steps=1).job_id, timeout_s=20)
    assert fine.status == "completed"
