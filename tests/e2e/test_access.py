"""API keys: nobody without one, everybody alone with their own jobs, and an admin who sees all."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from bittensor_wallet import Keypair
from ray import serve
from ray.serve.context import _get_global_client

from deployments.models import ModelSettings, SimulatedOptions
from serve_app.access.keys import hash_of, new_key, new_signing_secret
from serve_app.ingress import ingress
from stress.callback_server import CallbackServer
from stress.receiver.signatures import SignatureVerdict
from tests.apps import App
from tests.signed_requests import signed

TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1, "job_id": "mine"}
KEYS = {name: new_key() for name in ("anna", "bert", "reader", "admin", "leaver", "greedy", "hasty")}
OURS, ANNA, STRANGER = (Keypair.create_from_uri(uri) for uri in ("//Bob", "//Alice", "//Eve"))
SIGNING_SECRET = new_signing_secret()
SCOPES = {"reader": ["read"], "admin": ["admin"]}
PIXEL_STEPS_A_MINUTE = 512 * 512 * 10
REQUESTS_A_SECOND = 10.0
JOB_ROUTES = [
    ("GET", "/inference/status/mine"),
    ("GET", "/inference/result/mine"),
    ("GET", "/images/mine.png"),
    ("DELETE", "/inference/mine"),
    ("POST", "/inference/mine/redeliver"),
]
ROUTES = [*JOB_ROUTES, ("GET", "/jobs"), ("POST", "/inference")]


@pytest.fixture(scope="module")
def guarded(deploy: Callable[..., App], tmp_path_factory: pytest.TempPathFactory) -> App:
    keys_file = tmp_path_factory.mktemp("keys") / "keys.toml"
    # A list of strings is written alike in JSON and TOML.
    entries = [
        f"[clients.{name}]\nscopes = {json.dumps(SCOPES.get(name, ['submit', 'read']))}\nkeys = ['{hash_of(key)}']\n"
        for name, key in KEYS.items()
    ]
    more = {"anna": f"hotkeys = ['{ANNA.ss58_address}']", "bert": f"signing_secret = '{SIGNING_SECRET}'"}
    text = "".join(entries)
    for name, line in more.items():
        text = text.replace(f"[clients.{name}]", f"[clients.{name}]\n{line}")
    keys_file.write_text(text)
    simulated = SimulatedOptions(step_seconds=0.01)
    models = [ModelSettings(name="quick", engine="simulated", simulated=simulated)]
    with pytest.MonkeyPatch.context() as patch:
        # What one ingress replica has seen, the other must know.
        patch.setattr("serve_app.app.ingress", ingress.options(num_replicas=2))
        return deploy(
            "guarded",
            models=models,
            keys_file=keys_file,
            hotkey=str(OURS.ss58_address),
            pixel_steps_per_minute_per_client=PIXEL_STEPS_A_MINUTE,
            requests_per_second_per_client=REQUESTS_A_SECOND,
        )


@pytest.fixture
def ask(guarded: App) -> Iterator[Callable[..., httpx.Response]]:
    with httpx.Client(base_url=guarded.url, timeout=30, trust_env=False) as http:

        def ask(client: str | None, method: str, path: str, **options: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {KEYS.get(client, client)}"} if client else {}
            return http.request(method, path, headers=headers, **options)

        yield ask


@pytest.fixture
def remembers(guarded: App) -> None:
    """Wait until the tracker, which has just been started, can tell which signed requests came before."""
    deadline = time.monotonic() + 60
    while (
        answer := httpx.get(f"{guarded.url}/jobs", headers=signed(ANNA, str(OURS.ss58_address)), trust_env=False)
    ).status_code == 503:
        assert answer.json()["error_code"] == "replays_unknown"
        assert 1 <= int(answer.headers["Retry-After"]) <= 26
        assert time.monotonic() < deadline
        time.sleep(0.5)


def listed(ask: Callable[..., httpx.Response], client: str) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = ask(client, "GET", "/jobs").json()["inference_jobs"]
    return jobs


@pytest.mark.defect("D12")
@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("wrong", [None, "dk_wrong", hash_of(KEYS["admin"])])
def test_nobody_gets_in_without_a_key(
    ask: Callable[..., httpx.Response], method: str, path: str, wrong: str | None
) -> None:
    answer = ask(wrong, method, path, json=TINY if method == "POST" else None)
    assert (answer.status_code, answer.json()["error_code"]) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_other_schemes_and_bad_bodies_without_a_key_tell_nothing_more(ask: Callable[..., httpx.Response]) -> None:
    assert ask(None, "POST", "/inference", json={"prompt": 7}).status_code == 401
    assert ask(None, "GET", "/inference/status/.bad?owner=!").status_code == 401
    assert ask(None, "GET", "/jobs", auth=("anna", KEYS["anna"])).status_code == 401


def test_a_client_meets_only_its_own_jobs_and_ids(ask: Callable[..., httpx.Response]) -> None:
    for name, seed in (("anna", 1), ("bert", 2)):
        assert ask(name, "POST", "/inference", json={**TINY, "seed": seed}).status_code == 200
        assert ask(name, "GET", "/inference/status/mine?wait=25").json()["status"] == "completed"
    pictures = [ask(name, "GET", "/inference/result/mine").content for name in ("anna", "bert")]
    assert pictures[0] != pictures[1]
    seeds = {name: [job["seed"] for job in listed(ask, name) if job["job_id"] == "mine"] for name in ("anna", "bert")}
    assert seeds == {"anna": [1], "bert": [2]}
    assert listed(ask, "reader") == []
    assert "owner" not in listed(ask, "anna")[0]
    for method, path in JOB_ROUTES:
        assert ask("reader", method, path).status_code in {403, 404}
        answer = ask("bert", method, path, params={"owner": "anna"})
        assert (answer.status_code, answer.json()["error_code"]) == (403, "forbidden")


def test_a_key_allows_what_its_scopes_say(ask: Callable[..., httpx.Response]) -> None:
    assert ask("reader", "GET", "/jobs").status_code == 200
    for method, path in (("POST", "/inference"), ("DELETE", "/inference/mine"), ("POST", "/inference/mine/redeliver")):
        answer = ask("reader", method, path, json=TINY if path == "/inference" else None)
        assert (answer.status_code, answer.json()["error_code"]) == (403, "forbidden")


def test_an_admin_sees_the_jobs_of_all_and_names_the_client(ask: Callable[..., httpx.Response]) -> None:
    for name in ("anna", "bert"):
        body = {**TINY, "job_id": f"of-{name}"}
        assert ask(name, "POST", "/inference", json=body).status_code == 200
        assert ask(name, "GET", f"/inference/status/of-{name}?wait=25").json()["status"] == "completed"
    owners = {job["job_id"]: job["owner"] for job in listed(ask, "admin")}
    assert (owners["of-anna"], owners["of-bert"]) == ("anna", "bert")
    assert {job["owner"] for job in ask("admin", "GET", "/jobs?owner=bert").json()["inference_jobs"]} == {"bert"}
    assert ask("admin", "GET", "/inference/result/of-anna").status_code == 404
    theirs = ask("admin", "GET", "/inference/result/of-anna?owner=anna")
    assert theirs.content == ask("anna", "GET", "/inference/result/of-anna").content
    shown = ask("admin", "GET", "/inference/status/of-anna?owner=anna").json()
    assert ask("admin", "GET", shown["result_url"]).content == theirs.content
    assert shown["image_url"].endswith("/images/of-anna.png?owner=anna")


def test_an_admin_submits_for_nobody_else(ask: Callable[..., httpx.Response]) -> None:
    answer = ask("admin", "POST", "/inference?owner=anna", json=TINY)
    assert (answer.status_code, answer.json()["error_code"]) == (403, "forbidden")


def test_a_key_that_is_taken_out_of_the_file_stops_to_count(guarded: App, ask: Callable[..., httpx.Response]) -> None:
    keys_file = guarded.settings.keys_file
    assert keys_file is not None
    assert ask("leaver", "GET", "/jobs").status_code == 200
    keys_file.write_text(keys_file.read_text().replace(hash_of(KEYS["leaver"]), hash_of("another")))
    deadline = time.monotonic() + 20
    while ask("leaver", "GET", "/jobs").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # The service looks at the file once a second, and tells nobody when it has.
    assert ask("anna", "GET", "/jobs").status_code == 200


def test_a_client_with_a_signing_secret_gets_its_callbacks_signed_with_it(ask: Callable[..., httpx.Response]) -> None:
    verdicts = {}
    for name in ("anna", "bert"):
        with CallbackServer(signing_secret=SIGNING_SECRET) as receiver:
            body = {**TINY, "job_id": "signed", "callback_url": receiver.callback_url}
            assert ask(name, "POST", "/inference", json=body).status_code == 200
            assert ask(name, "GET", "/inference/status/signed?wait=25").json()["status"] == "completed"
            verdicts[name] = receiver.entries_for("signed")[0].signature
    assert verdicts == {"anna": SignatureVerdict.MISSING, "bert": SignatureVerdict.RIGHT}
    for client in ("bert", "admin"):
        answer = ask(client, "GET", "/inference/status/signed?owner=bert" if client == "admin" else "/jobs")
        assert SIGNING_SECRET not in answer.text


@pytest.mark.usefixtures("remembers")
def test_a_signed_request_is_its_clients_and_counts_once_at_all_ingress_replicas(guarded: App) -> None:
    us = str(OURS.ss58_address)
    body = json.dumps({**TINY, "job_id": "signed-for"}).encode()
    with httpx.Client(base_url=guarded.url, timeout=30, trust_env=False) as http:
        json_headers = {"Content-Type": "application/json"}
        sent = {**signed(ANNA, us, body), **json_headers}
        answers = [http.post("/inference", content=body, headers=sent) for _ in range(20)]
        assert [answer.status_code for answer in answers] == [200, *[401] * 19]
        assert {answer.json()["error_code"] for answer in answers[1:]} == {"request_replayed"}
        status = http.get("/inference/status/signed-for?wait=25", headers=signed(ANNA, us, digest_of=b"{}"))
        assert status.json()["status"] == "completed"
        poll = signed(ANNA, us)
        polls = [http.get("/inference/status/signed-for", headers=poll) for _ in range(2)]
        assert [answer.status_code for answer in polls] == [200, 401]
        assert http.get("/jobs", headers={"Authorization": f"Bearer {KEYS['anna']}"}).json()["inference_jobs"]

        stranger = http.get("/jobs", headers=signed(STRANGER, us))
        assert (stranger.status_code, stranger.json()["error_code"]) == (403, "forbidden")
        wrong = http.post("/inference", content=body + b" ", headers={**signed(ANNA, us, body), **json_headers})
        assert (wrong.status_code, wrong.json()["error_code"]) == (401, "unauthenticated")


@pytest.mark.usefixtures("remembers")
def test_no_secret_is_in_any_output(guarded: App, ask: Callable[..., httpx.Response]) -> None:
    secrets = [*KEYS.values(), SIGNING_SECRET, callback_secret := "callback-secret-that-nobody-may-see"]
    signature = signed(ANNA, str(OURS.ss58_address))
    outputs = {}
    with CallbackServer() as gone:
        nowhere = gone.callback_url
    for n, changed in enumerate(({}, {"callback_url": nowhere}, {"width": -1}, {"callback_url": "http://10.0.0.1/"})):
        body = {**TINY, "job_id": f"secret-{n}", "callback_secret": callback_secret, **changed}
        outputs[f"submit {n}"] = ask("bert", "POST", "/inference", json=body).text
        outputs[f"status {n}"] = ask("bert", "GET", f"/inference/status/secret-{n}?wait=25").text
    with httpx.Client(base_url=guarded.url, timeout=30, trust_env=False) as http:
        assert http.get("/jobs", headers=signature).status_code == 200
        outputs["replay"] = http.get("/jobs", headers=signature).text
    outputs["wrong key"] = ask(KEYS["bert"] + "x", "GET", "/jobs").text
    for path in ("/jobs", "/health", "/", "/openapi.json"):
        outputs[path] = ask("admin", "GET", path).text
    outputs["Serve"] = str(serve.status())
    outputs["Serve's details"] = str(_get_global_client().get_serve_details())
    outputs["metrics"] = metrics()
    assert "darkroom_jobs" in outputs["metrics"]
    logs = Path(ray.get_runtime_context().get_temp_dir(), ray.get_runtime_context().get_session_name(), "logs")
    read = {str(file): file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file()}
    assert any("secret-1" in text for text in read.values())
    for where, text in (outputs | read).items():
        assert not [secret for secret in secrets if secret in text], where
        assert signature["Authorization"] not in text, where


def metrics() -> str:
    """Return what Prometheus would scrape."""
    (node,) = ray.nodes()
    return httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=30, trust_env=False).text


def test_a_client_that_asks_for_too_much_work_waits_and_others_do_not(ask: Callable[..., httpx.Response]) -> None:
    large = {**TINY, "width": 512, "height": 512, "num_inference_steps": 15}
    assert ask("greedy", "POST", "/inference", json={**large, "job_id": "first"}).status_code == 200
    refused = ask("greedy", "POST", "/inference", json={**TINY, "job_id": "second"})
    assert (refused.status_code, refused.json()["error_code"]) == (429, "allowance_used")
    # Half a minute's worth too much; a moment of it has passed.
    assert 20 <= int(refused.headers["Retry-After"]) <= 30
    assert ask("greedy", "POST", "/inference", json={**large, "job_id": "first"}).status_code == 200
    assert ask("anna", "POST", "/inference", json={**TINY, "job_id": "beside"}).status_code == 200


def test_a_client_that_sends_too_many_requests_is_slowed_down_and_others_are_not(
    ask: Callable[..., httpx.Response],
) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask("hasty", "GET", "/inference/status/none"), range(600)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {404, 429}
    assert {answer.json()["error_code"] for answer in refused} == {"too_many_requests"}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert ask("anna", "GET", "/inference/status/none").status_code == 404


def test_health_and_the_root_need_no_key_and_the_document_says_how(ask: Callable[..., httpx.Response]) -> None:
    assert ask(None, "GET", "/health").status_code == 200
    assert ask(None, "GET", "/").status_code == 200
    schemes = ask(None, "GET", "/openapi.json").json()["components"]["securitySchemes"]
    assert [scheme["scheme"] for scheme in schemes.values()] == ["bearer"]
