"""A submit is answered alike on the short way and, with a query that says nothing, on FastAPI's."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, routing

from callback.allowance import Allowance
from callback.records import NewJob
from callback.states import JobState
from serve_app import adapter_lookup
from serve_app.access.clients import Client, Scope
from serve_app.adapter_lookup import AdapterLookup
from serve_app.api import errors, inference
from serve_app.api.limits import MAX_BODY_BYTES, BodyLimit
from serve_app.job_request import JobResult
from serve_app.mirror import Mirror
from tests.unit.serve_app.fakes import FakeTracker, view

BODY = b'{"prompt": "a", "seed": 3}'
_JOB_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
JSON = (b"content-type", b"application/json")
MAY_SUBMIT, MAY_READ = (b"authorization", b"Bearer writer"), (b"authorization", b"Bearer reader")
GONE = {"type": "http.disconnect"}
RESULT = JobResult(seed=3, determinism="exact", seconds={}, warnings=["It was hard."]).model_dump_json()


class Keys:
    """Two clients, each with what it may do as its key."""

    def client_of(self, key: str) -> Client | None:
        scopes = {"writer": Scope.SUBMIT, "reader": Scope.READ}
        return Client(key, frozenset({scopes[key]})) if key in scopes else None


class Service:
    """What the route needs of a service; `became` is what the tracker says of a job besides who it is."""

    def __init__(self, *, keys: Keys | None = None, per_s: float | None = None, **became: Any) -> None:
        described = SimpleNamespace(default_steps=20, default_guidance=7.0)
        self.settings = SimpleNamespace(hotkey=None, enable_inference=True, max_pixels=2**22, service_url="http://s")
        self.keys, self.stopping, self.default_model = keys, False, "m"
        self.models = {"m": SimpleNamespace(settings=SimpleNamespace(name="m"), description=described)}
        self.requests = Allowance(per_s, 2.0, time.monotonic) if per_s else None
        self.mirror = Mirror(FakeTracker())  # type: ignore[arg-type]  # nothing is followed
        self.submitted: list[NewJob] = []
        self._became = became

    async def submit(self, job: NewJob) -> Any:
        self.submitted.append(job)
        known = {"key": job.key, "owner": job.owner, "job_id": job.job_id, "request_json": job.request_json}
        return view(**known | self._became)


async def answer(
    service: Service,
    messages: Sequence[dict[str, Any] | Exception],
    headers: Sequence[tuple[bytes, bytes]],
    *,
    short: bool,
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body, with ID for a random one."""
    api = FastAPI()
    errors.install(api)
    api.add_middleware(BodyLimit)
    api.router.routes.extend(inference.router(service).routes)  # type: ignore[arg-type]  # see `Service`
    left, sent = [*messages], []

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        if isinstance(message := left.pop(0), Exception):
            raise message
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/inference", "raw_path": b"/inference", "headers": headers}
    async with asyncio.timeout(10):
        await api(scope | {"query_string": b"" if short else b"unknown=1"}, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return (
        sent[0]["status"],
        sorted(sent[0]["headers"]),
        re.sub(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", b"ID", body),
    )


def whole(body: bytes = BODY) -> list[dict[str, Any] | Exception]:
    return [{"type": "http.request", "body": body}]


def broken(*after: dict[str, Any] | Exception) -> list[dict[str, Any] | Exception]:
    return [{"type": "http.request", "body": BODY[:5], "more_body": True}, *after]


@pytest.mark.parametrize(
    ("messages", "headers", "status"),
    [
        pytest.param(whole(), [JSON], 200, id="valid"),
        pytest.param([*broken(), {"type": "http.request", "body": BODY[5:]}], [JSON], 200, id="in two parts"),
        pytest.param(whole(), [], 422, id="no content type"),
        pytest.param(whole(), [(b"content-type", b"text/plain")], 422, id="another content type"),
        pytest.param(whole(), [JSON, (b"idempotency-key", b"")], 422, id="empty key"),
        pytest.param(whole(), [JSON, (b"idempotency-key", b"key")], 200, id="key"),
        pytest.param(whole(b"{"), [JSON], 400, id="no JSON"),
        pytest.param(whole(b"{}"), [JSON], 422, id="no prompt"),
        pytest.param(whole(b'{"prompt": "a", "model": "other"}'), [JSON], 422, id="unknown model"),
        pytest.param(whole(b'{"prompt": "a", "width": 64, "seed": 9e999}'), [JSON], 422, id="endless seed"),
        pytest.param(whole(bytes(MAX_BODY_BYTES + 1)), [JSON], 413, id="too large"),
        pytest.param(broken(GONE, GONE), [JSON], 400, id="client gone"),
        pytest.param(broken(GONE), [JSON], 400, id="client gone, told once"),
        pytest.param(broken(RuntimeError("The proxy died.")), [JSON], 400, id="proxy gone"),
    ],
)
async def test_whatever_comes(
    messages: Sequence[dict[str, Any] | Exception], headers: Sequence[tuple[bytes, bytes]], status: int
) -> None:
    short, general = Service(), Service()
    answered = await answer(short, messages, headers, short=True)
    assert answered[0] == status
    assert answered == await answer(general, messages, headers, short=False)
    assert [job.fingerprint for job in short.submitted] == [job.fingerprint for job in general.submitted]
    assert len(short.submitted) == (status == 200)


@pytest.mark.parametrize("body", [BODY, b"{}", b"{"])
@pytest.mark.parametrize(("key", "status"), [(MAY_SUBMIT, 200), (MAY_READ, 403), (JSON, 401)])
async def test_whoever_sends_it(body: bytes, key: tuple[bytes, bytes], status: int) -> None:
    short, general = Service(keys=Keys()), Service(keys=Keys())
    answered = await answer(short, whole(body), [JSON, key], short=True)
    assert answered[0] == {b"{": 400, b"{}": 422 if status == 200 else status}.get(body, status)
    assert answered == await answer(general, whole(body), [JSON, key], short=False)


@pytest.mark.parametrize(("short", "solved"), [(True, 0), (False, 1)])
async def test_the_short_way_is_short(short: bool, solved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    solving = []
    solve = routing.solve_dependencies

    async def noted(*args: Any, **kwargs: Any) -> Any:
        solving.append(kwargs)
        return await solve(*args, **kwargs)

    monkeypatch.setattr(routing, "solve_dependencies", noted)
    assert (await answer(Service(), whole(), [JSON], short=short))[0] == 200
    assert len(solving) == solved


@pytest.mark.parametrize("body", [BODY, b"{}"])
async def test_each_request_counts_once(body: bytes) -> None:
    short, general = Service(per_s=0.001), Service(per_s=0.001)
    statuses = [(await answer(short, whole(body), [JSON], short=True))[0] for _ in range(5)]
    assert statuses[-1] == 429
    assert statuses == [(await answer(general, whole(body), [JSON], short=False))[0] for _ in range(5)]


@pytest.mark.parametrize(
    ("became", "status", "warnings"),
    [
        ({}, "queued", []),
        ({"state": JobState.PROCESSING}, "queued", []),
        ({"state": JobState.PROCESSING, "started_at": 1.0}, "processing", []),
        ({"state": JobState.COMPLETED, "finished_at": 2.0, "result_json": RESULT}, "completed", ["It was hard."]),
        ({"state": JobState.FAILED, "finished_at": 2.0, "error_code": "cancelled"}, "failed", []),
    ],
)
@pytest.mark.parametrize(
    ("earlier", "message"),
    [({}, "The job is accepted."), ({"key": "earlier"}, "The job was accepted before.")],
)
async def test_whatever_has_become_of_the_job(
    earlier: dict[str, Any], message: str, became: dict[str, Any], status: str, warnings: list[str]
) -> None:
    service = Service(**became, **earlier)
    answered = await answer(service, whole(), [JSON], short=True)
    told = json.loads(answered[2])
    assert (told["status"], told["message"], told["warnings"], told["seed"]) == (status, message, warnings, 3)
    assert ("queue_position" in told) == (status == "queued")
    assert answered == await answer(service, whole(), [JSON], short=False)


async def test_an_adapter_folder_that_hangs_is_told_and_nothing_piles_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_lookup, "TIMEOUT_S", 0.05)
    answers, asked = threading.Event(), []

    def hang(name: str) -> Any:
        asked.append(name)
        answers.wait()
        return SimpleNamespace(name=name)

    service = Service()
    lookup = AdapterLookup(SimpleNamespace(resolve=hang))  # type: ignore[arg-type]  # a folder that hangs
    service.models["m"].adapters = lookup
    submit = partial(answer, service, whole(b'{"prompt": "a", "lora_path": "x"}'), [JSON], short=True)
    for _ in range(2 * adapter_lookup.AT_ONCE):
        status, headers, body = await submit()
        assert (status, json.loads(body)["error_code"]) == (503, "adapters_unavailable")
        assert b"retry-after" in dict(headers)
    assert (len(asked), service.submitted) == (adapter_lookup.AT_ONCE, [])

    monkeypatch.setattr(adapter_lookup, "TIMEOUT_S", 10.0)
    answers.set()
    assert (await submit())[0] == 200
    lookup.close()
