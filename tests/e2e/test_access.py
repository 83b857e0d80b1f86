"""API keys: nobody without one, everybody alone with their own jobs, and an admin who sees all."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deployments.models import ModelSettings, SimulatedOptions
from serve_app.access.keys import hash_of, new_key
from tests.apps import App

TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1, "job_id": "mine"}
KEYS = {name: new_key() for name in ("anna", "bert", "reader", "admin", "leaver")}
SCOPES = {"reader": ["read"], "admin": ["admin"]}
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
    keys_file.write_text("".join(entries))
    simulated = SimulatedOptions(step_seconds=0.01)
    models = [ModelSettings(name="quick", engine="simulated", simulated=simulated)]
    return deploy("guarded", models=models, keys_file=keys_file)


@pytest.fixture
def ask(guarded: App) -> Iterator[Callable[..., httpx.Response]]:
    with httpx.Client(base_url=guarded.url, timeout=30, trust_env=False) as http:

        def ask(client: str | None, method: str, path: str, **options: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {KEYS.get(client, client)}"} if client else {}
            return http.request(method, path, headers=headers, **options)

        yield ask


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


def test_health_and_the_root_need_no_key_and_the_document_says_how(ask: Callable[..., httpx.Response]) -> None:
    assert ask(None, "GET", "/health").status_code == 200
    assert ask(None, "GET", "/").status_code == 200
    schemes = ask(None, "GET", "/openapi.json").json()["components"]["securitySchemes"]
    assert [scheme["scheme"] for scheme in schemes.values()] == ["bearer"]
