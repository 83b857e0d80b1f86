"""Callbacks as a receiver and a poller see them."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import httpx
import pytest

from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from stress.errors import ConflictError
from stress.receiver.signatures import SignatureVerdict
from tests.apps import App
from tests.e2e.conftest import SECRET

TINY = {"prompt": "x", "model": "simulated", "width": 64, "height": 64, "num_inference_steps": 1}
FINAL = {"completed", "failed", "timeout"}


@pytest.mark.defect("D7")
@pytest.mark.defect("D9")
def test_a_final_status_always_carries_its_callback_even_beside_slow_receivers(
    app: App, receiver: CallbackServer
) -> None:
    bound_s = app.settings.callback_timeout_s
    with ExitStack() as stack:
        slow = [stack.enter_context(CallbackServer()) for _ in range(10)]
        for one in slow:
            one.misbehave(delay_s=60)

        def poll_without_pause(n: int) -> tuple[float, str]:
            """Return the seconds from the end of the job to the attempt, and the callback's status."""
            url = slow[n // 5].callback_url if n % 5 == 0 else receiver.callback_url
            with httpx.Client(base_url=app.url, timeout=30, trust_env=False) as http:
                body = {**TINY, "num_inference_steps": 3, "callback_url": url, "callback_secret": SECRET}
                job_id = http.post("/inference", json=body).json()["job_id"]
                deadline = time.monotonic() + 90
                while time.monotonic() < deadline:
                    status = http.get(f"/inference/status/{job_id}").json()
                    if status["status"] in FINAL:
                        callback = status["callback"]
                        attempted = datetime.fromisoformat(callback["attempted_at"])
                        late = attempted - datetime.fromisoformat(status["completed_at"])
                        return late.total_seconds(), callback["status"]
                raise AssertionError(f"{job_id} did not end")

        with ThreadPoolExecutor(50) as threads:
            outcomes = list(threads.map(poll_without_pause, range(50)))
        for one in slow:
            one.behave()

    assert sorted(status for _, status in outcomes) == ["delivered"] * 40 + ["failed"] * 10
    assert max(late for late, _ in outcomes) < bound_s


def test_whoever_has_had_the_callback_can_have_the_picture(app: App, receiver: CallbackServer) -> None:
    def fetch_when_called(n: int) -> tuple[int, str]:
        with httpx.Client(base_url=app.url, timeout=30, trust_env=False) as http:
            job_id = http.post("/inference", json={**TINY, "seed": n, "callback_url": receiver.callback_url}).json()[
                "id"
            ]
            (entry,) = receiver.wait_for(job_id, timeout_s=60)
            answer = http.get(f"/inference/result/{job_id}")
            return answer.status_code, "same" if sha256(answer.content).hexdigest() == entry.sha256 else answer.text

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(fetch_when_called, range(60))) == {(200, "same")}


@pytest.mark.defect("D8")
def test_a_callback_that_fails_is_repeated_with_the_same_id_and_a_new_attempt(
    client: DarkroomClient, receiver: CallbackServer
) -> None:
    receiver.misbehave(times=2, answer_status=503)
    job_id = client.submit(**TINY, callback_url=receiver.callback_url, callback_secret=SECRET).job_id
    status = client.wait(job_id)
    assert status.status == "completed"
    assert status.callback is not None
    assert (status.callback.status, status.callback.status_code) == ("failed", 503)
    assert status.callback.final is False
    assert status.callback.next_attempt_at is not None
    entries = receiver.wait_for(job_id, count=3, timeout_s=30)
    assert [entry.webhook_attempt for entry in entries] == [1, 2, 3]
    assert len({entry.webhook_id for entry in entries}) == 1
    assert {entry.sha256 for entry in entries} == {status.sha256}


@pytest.mark.defect("D8")
def test_a_delivered_callback_is_sent_again_on_request(client: DarkroomClient, receiver: CallbackServer) -> None:
    job_id = client.submit(**TINY, callback_url=receiver.callback_url, callback_secret=SECRET).job_id
    client.wait(job_id)
    client.redeliver(job_id)
    first, second = receiver.wait_for(job_id, count=2)
    assert (first.webhook_id, first.webhook_attempt) == (second.webhook_id, 1)
    assert second.webhook_attempt == 2


def test_nothing_can_be_redelivered_without_an_address_or_before_the_end(client: DarkroomClient) -> None:
    job_id = client.submit(**TINY).job_id
    status = client.wait(job_id)
    assert status.callback is not None
    assert (status.callback.status, status.callback.reason) == ("skipped", "missing_callback_url")
    with pytest.raises(ConflictError):
        client.redeliver(job_id)


def test_after_the_expiry_nothing_is_sent(client: DarkroomClient, receiver: CallbackServer) -> None:
    past = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    answer = client.submit(**TINY, callback_url=receiver.callback_url, callback_secret=SECRET, expiry=past)
    assert any("expiry" in warning for warning in answer.warnings)
    status = client.wait(answer.job_id)
    assert status.status == "completed"
    assert status.callback is not None
    assert (status.callback.status, status.callback.final) == ("expired", True)
    assert receiver.entries_for(answer.job_id) == ()


def test_a_receiver_that_nobody_runs_is_reported_without_a_status_code(app: App, client: DarkroomClient) -> None:
    with CallbackServer() as gone:
        url = gone.callback_url
    expiry = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
    status = client.wait(client.submit(**TINY, callback_url=url, expiry=expiry).job_id)
    assert status.callback is not None
    assert (status.callback.status, status.callback.status_code) == ("failed", None)
    assert status.callback.error


def test_a_redirect_is_not_followed(client: DarkroomClient, receiver: CallbackServer) -> None:
    with CallbackServer() as elsewhere:
        receiver.misbehave(times=1, answer_status=307, answer_headers={"Location": elsewhere.callback_url})
        job_id = client.submit(**TINY, callback_url=receiver.callback_url, callback_secret=SECRET).job_id
        status = client.wait(job_id)
        assert status.callback is not None
        assert (status.callback.status, status.callback.status_code) == ("failed", 307)
        assert elsewhere.entries() == ()


def test_a_callback_is_signed_with_the_key_that_the_service_publishes(
    client: DarkroomClient, http: httpx.Client
) -> None:
    public_key = http.get("/").json()["callback_public_key"]
    with CallbackServer(secret=SECRET, public_key=public_key) as receiver:
        body = {**TINY, "callback_url": receiver.callback_url, "callback_secret": SECRET}
        job_id = client.submit(**body).job_id
        assert client.wait(job_id).status == "completed"
        (entry,) = receiver.entries_for(job_id)
    assert (entry.signature, entry.has_image) == (SignatureVerdict.RIGHT, True)


def test_a_failed_job_calls_back_with_its_error_and_no_picture(
    client: DarkroomClient, receiver: CallbackServer
) -> None:
    body = {**TINY, "prompt": "[fail]", "callback_url": receiver.callback_url, "callback_secret": SECRET}
    status = client.wait(client.submit(**body).job_id)
    (entry,) = receiver.wait_for(status.job_id)
    assert (entry.status, entry.has_image, entry.error) == ("failed", False, status.error)
