"""The main job on real input: a prompt becomes a picture that arrives by callback, polling and download."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from stress.image_validator import ImageValidator
from tests.apps import App
from tests.e2e.conftest import SECRET

SMALL = {"model": "embedded", "width": 256, "height": 256, "num_inference_steps": 4}


def test_the_same_picture_arrives_by_callback_polling_and_download(
    client: DarkroomClient, receiver: CallbackServer
) -> None:
    answer = client.submit(
        prompt="a red circle", seed=42, callback_url=receiver.callback_url, callback_secret=SECRET, **SMALL
    )
    status = client.wait(answer.job_id, timeout_s=60)
    (callback,) = receiver.wait_for(answer.job_id, timeout_s=10)

    assert status.status == "completed"
    assert callback.secret_ok
    assert status.callback is not None
    assert (status.callback.status, status.callback.status_code) == ("delivered", 200)
    png = client.result(answer.job_id)
    assert png == client.image(answer.job_id)
    assert status.sha256 == callback.sha256 == hashlib.sha256(png).hexdigest()
    assert ImageValidator(256, 256, min_file_size=1000).validate_bytes(png).is_valid


def test_a_submit_is_answered_alike_on_the_short_and_the_general_way(http: httpx.Client) -> None:
    asked = {"prompt": "a", "model": "simulated", "seed": 3, "width": 64, "height": 64, "callback_secret": "unused"}

    def answer(**request: Any) -> dict[str, Any]:
        submitted = http.post("/inference", **request)
        assert submitted.status_code == 200
        return {
            name: value.replace(submitted.json()["job_id"], "ID") if isinstance(value, str) else value
            for name, value in submitted.json().items()
            if name != "queue_position"
        }

    short = answer(json=asked)
    assert short["warnings"] == ["callback_secret has no effect without callback_url."]
    assert short == answer(json=asked, params={"unknown": "1"})
    assert short == answer(json=asked, headers={"Idempotency-Key": str(uuid4())})
    assert short == answer(content=json.dumps(asked), headers={"Content-Type": "application/json; charset=utf-8"})
    assert short == answer(content=json.dumps(asked).encode("utf-16"), headers={"Content-Type": "application/json"})


def test_a_status_has_every_field_of_the_protocol(http: httpx.Client, receiver: CallbackServer) -> None:
    body = {
        "prompt": "a blue square",
        "negative_prompt": "red",
        "seed": 0,
        "model": "simulated",
        "lora_path": None,
        "width": 64,
        "height": 128,
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "job_id": "every-field.1",
        "callback_url": receiver.callback_url,
        "callback_secret": SECRET,
        "expiry": "2099-01-01T00:00:00",
        "unknown_field": "ignored",
    }
    submitted = http.post("/inference", json=body)
    assert submitted.status_code == 200
    answer = submitted.json()
    assert answer["accepted"] is True
    assert answer["id"] == answer["job_id"] == "every-field.1"
    assert (answer["status"], answer["seed"]) == ("queued", 0)
    assert answer["status_url"] == "/inference/status/every-field.1"
    assert answer["result_url"] == "/inference/result/every-field.1"

    status = http.get("/inference/status/every-field.1", params={"wait": 20}).json()

    assert status["id"] == status["job_id"] == "every-field.1"
    assert status["status"] == "completed"
    for moment in ("queued_at", "started_at", "completed_at"):
        assert status[moment].endswith("+00:00")
        assert abs((datetime.now(UTC) - datetime.fromisoformat(status[moment])).total_seconds()) < 60
    assert status["request"] == {
        "prompt": "a blue square",
        "negative_prompt": "red",
        "model": "simulated",
        "lora_path": None,
        "width": 64,
        "height": 128,
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "seed": 0,
        "callback_url": receiver.callback_url,
        "callback_secret_provided": True,
        "expiry": "2099-01-01T00:00:00.000000+00:00",
    }
    assert status["image_url"].endswith("/images/every-field.1.png")
    assert (status["width"], status["height"], status["seed"]) == (64, 128, 0)
    assert status["determinism"] == "exact"
    assert status["seconds"]["denoising"] > 0
    callback = status["callback"]
    assert callback["status"] == "delivered"
    assert callback["payload_status"] == "completed"
    assert (callback["attempts"], callback["final"]) == (1, True)
    assert callback["webhook_id"].startswith("msg_")
    (entry,) = receiver.wait_for("every-field.1")
    assert entry.image_url == status["image_url"]
    assert entry.webhook_id == callback["webhook_id"]


@pytest.mark.parametrize("job_id", ["polled.1", "nobodys", ".bad", "bad%20id", "bad%0A"])
def test_a_poll_is_answered_alike_with_a_query_and_without(http: httpx.Client, job_id: str) -> None:
    body = {"prompt": "x", "seed": 1, "model": "simulated", "width": 64, "height": 64, "job_id": "polled.1"}
    http.post("/inference", json=body)
    http.get("/inference/status/polled.1", params={"wait": 20})

    # What has no query takes a shorter way.
    plain, asking = (http.get(f"/inference/status/{job_id}{query}") for query in ("", "?wait=0"))

    assert (plain.status_code, plain.content) == (asking.status_code, asking.content)
    assert plain.status_code == {"polled.1": 200, "nobodys": 404}.get(job_id, 422)
    assert plain.headers["Content-Type"] == asking.headers["Content-Type"]


def test_a_download_is_an_attachment_with_a_tag_that_spares_a_second_one(
    client: DarkroomClient, http: httpx.Client
) -> None:
    job_id = client.submit(prompt="x", model="simulated", num_inference_steps=1, width=64, height=64).job_id
    status = client.wait(job_id)
    download = http.get(f"/inference/result/{job_id}")
    assert download.headers["content-type"] == "image/png"
    assert download.headers["content-disposition"] == f'attachment; filename="{job_id}.png"'
    assert download.headers["etag"] == f'"{status.sha256}"'
    again = http.get(f"/images/{job_id}.png", headers={"If-None-Match": download.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.defect("D14")
def test_twenty_concurrent_jobs_are_each_bit_identical_to_the_same_request_alone(
    app: App, client: DarkroomClient, receiver: CallbackServer
) -> None:
    requests = [{"prompt": f"a shape {n}", "seed": n, **SMALL} for n in range(20)]
    alone = {}
    for request in requests:
        job_id = client.submit(**request).job_id
        assert client.wait(job_id, timeout_s=60).status == "completed"
        alone[request["seed"]] = client.result(job_id)

    def run(request: dict[str, object]) -> tuple[object, str, bytes]:
        with app.client() as own:
            job_id = own.submit(**request, callback_url=receiver.callback_url, callback_secret=SECRET).job_id
            assert own.wait(job_id, timeout_s=120).status == "completed"
            return request["seed"], job_id, own.result(job_id)

    with ThreadPoolExecutor(20) as threads:
        together = list(threads.map(run, requests))

    assert len(set(alone.values())) == 20
    for seed, job_id, png in together:
        assert alone[seed] == png
        (callback,) = receiver.wait_for(job_id)
        assert callback.sha256 == hashlib.sha256(png).hexdigest()


@pytest.mark.defect("D14")
def test_an_adapter_is_active_for_its_job_alone(app: App, client: DarkroomClient) -> None:
    def picture(**changes: object) -> bytes:
        with app.client() as own:
            job_id = own.submit(prompt="a green ring", seed=7, **SMALL, **changes).job_id
            assert own.wait(job_id, timeout_s=60).status == "completed"
            return own.result(job_id)

    base, adapted = picture(), picture(lora_path="strong")
    assert base != adapted
    mixed = [{"lora_path": name} for name in ("", "strong", "", "strong.safetensors", "", "")]
    with ThreadPoolExecutor(len(mixed)) as threads:
        pictures = list(threads.map(lambda changes: picture(**changes), mixed))
    assert pictures == [adapted if changes["lora_path"] else base for changes in mixed]


@pytest.mark.defect("D15")
def test_seed_0_is_0_and_a_missing_seed_is_random_and_reported(client: DarkroomClient) -> None:
    tiny = {"prompt": "x", "model": "simulated", "width": 64, "height": 64, "num_inference_steps": 1}
    zero, one, other = (client.submit(**tiny, **seed) for seed in ({"seed": 0}, {}, {}))
    assert zero.seed == 0
    assert one.seed != other.seed
    finished = client.wait(one.job_id)
    assert finished.seed == one.seed
    again = client.submit(**tiny, seed=one.seed)
    assert client.wait(again.job_id).sha256 == finished.sha256


def test_an_odd_size_is_rendered_exactly(client: DarkroomClient) -> None:
    job_id = client.submit(prompt="x", model="embedded", width=65, height=130, num_inference_steps=1).job_id
    status = client.wait(job_id, timeout_s=60)
    assert (status.width, status.height) == (65, 130)


def test_a_request_picks_its_model_and_gets_that_models_defaults(client: DarkroomClient, http: httpx.Client) -> None:
    body = {"prompt": "x", "width": 64, "height": 64, "model": "embedded"}
    status = client.wait(client.submit(**body).job_id, timeout_s=60)
    echo = http.get(f"/inference/status/{status.job_id}").json()["request"]
    assert (echo["model"], echo["num_inference_steps"], echo["guidance_scale"]) == ("embedded", 28, 7.0)


def test_a_prompt_that_the_encoder_cuts_is_rendered_with_a_warning(client: DarkroomClient) -> None:
    job_id = client.submit(prompt="red circle " * 100, **SMALL).job_id
    status = client.wait(job_id, timeout_s=60)
    assert status.status == "completed"
    assert any("cut" in warning for warning in status.warnings)
