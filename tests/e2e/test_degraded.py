"""What the service says and does while something of it is not there."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deployments.models import ModelSettings, SimulatedOptions
from tests.apps import App

TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1}
LOAD_S = 6.0
PAUSE_S = 0.2


@pytest.mark.defect("D13")
@pytest.mark.defect("D22")
def test_jobs_are_accepted_while_one_model_loads_and_another_cannot(
    deploy: Callable[..., App], serve_url: str, tmp_path: Path
) -> None:
    broken = tmp_path / "no-model-here"
    broken.mkdir()
    models = [
        ModelSettings(name="slow", engine="simulated", simulated=SimulatedOptions(load_seconds=LOAD_S)),
        ModelSettings(name="broken", source=str(broken)),
    ]
    url = f"{serve_url}/loading"
    with ThreadPoolExecutor(1) as thread, httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        # It answers when all models are loaded, or raises because one cannot be.
        deploying = thread.submit(deploy, "loading", models=models, queue_timeout_s=40)
        deadline = time.monotonic() + 60
        while (health := _health(http)) is None or not health["accepting"]:
            assert time.monotonic() < deadline
            time.sleep(PAUSE_S)
        assert health["status"] == "degraded"
        slow = http.post("/inference", json={**TINY, "model": "slow"}).json()["job_id"]
        lost = http.post("/inference", json={**TINY, "model": "broken", "job_id": "lost"})
        assert lost.status_code == 200

        assert http.get(f"/inference/status/{slow}", params={"wait": 30}).json()["status"] == "completed"
        while (health := http.get("/health").json())["models"]["broken"]["status"] not in {
            "UNHEALTHY",
            "DEPLOY_FAILED",
        }:
            assert time.monotonic() < deadline + 60
            time.sleep(PAUSE_S)
        assert any("broken" in problem for problem in health["problems"])
        assert "Traceback" not in str(health)
        assert str(tmp_path) not in str(health)
        # Its job waits; it is neither lost nor does it keep the other model from working.
        again = http.post("/inference", json={**TINY, "model": "slow"}).json()["job_id"]
        assert http.get(f"/inference/status/{again}", params={"wait": 30}).json()["status"] == "completed"
        assert http.get("/inference/status/lost").json()["status"] == "queued"
        cancelled = http.delete("/inference/lost")
        assert cancelled.status_code == 200
        ended = http.get("/inference/status/lost", params={"wait": 30}).json()
        assert (ended["status"], ended["error_code"]) == ("failed", "cancelled")
        with pytest.raises(RuntimeError):
            deploying.result(60)


def test_a_service_that_takes_no_jobs_says_so(deploy: Callable[..., App]) -> None:
    app = deploy("closed", models=[ModelSettings(name="none", engine="noop")], enable_inference=False)
    answer = httpx.get(f"{app.url}/health", trust_env=False)
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    refused = httpx.post(f"{app.url}/inference", json=TINY, trust_env=False)
    assert (refused.status_code, refused.json()["error_code"]) == (503, "inference_disabled")
    assert int(refused.headers["Retry-After"]) > 0


def _health(http: httpx.Client) -> dict[str, object] | None:
    try:
        answer = http.get("/health")
        return answer.json() if answer.headers["content-type"] == "application/json" else None
    except httpx.HTTPError:
        return None
