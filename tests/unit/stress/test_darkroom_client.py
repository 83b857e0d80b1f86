import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from stress import calls
from stress.background_server import BackgroundServer
from stress.client import AsyncDarkroomClient, DarkroomClient
from stress.errors import (
    AnswerError,
    ConflictError,
    InvalidRequestError,
    JobNotFoundError,
    JobWaitTimeoutError,
    NotFoundError,
    PictureNotFoundError,
    ServiceBusyError,
    ServiceError,
    ServiceFailedError,
    ServiceUnreachableError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from stress.wire import InferenceRequest, JobState, JobStatus

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"


@dataclass
class Service:
    """A small service: what it was asked, what it answers, and where it cuts the connection."""

    app: FastAPI = field(default_factory=FastAPI)
    server: BackgroundServer = field(init=False)
    bodies: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    paths: Counter[str] = field(default_factory=Counter)
    cuts: int = 0
    knows_wait: bool = True
    waits: list[str | None] = field(default_factory=list)
    states: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[Response]] = field(default_factory=dict)
    asked: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.server = BackgroundServer(self.app, probe_path="/health")
        self.app.middleware("http")(self._cut_or_answer)
        self.app.post("/inference")(self._submit)
        self.app.get("/inference/status/{job_id}")(self._status)
        self.app.get("/health")(lambda: {"status": "healthy", "services": {"inference": "loaded"}})

    async def _cut_or_answer(self, request: Request, call_next) -> Response:  # type: ignore[no-untyped-def]
        path = request.scope["raw_path"].decode()
        self.paths[f"{request.method} {path}"] += 1
        if self.answers.get(path):
            return self.answers[path].pop(0)
        response: Response = await call_next(request)
        if self.cuts:
            self.cuts -= 1
            assert request.client is not None
            self.server.hang_up((request.client.host, request.client.port))
        return response

    async def _submit(self, request: Request) -> dict[str, object]:
        self.bodies.append(await request.json())
        self.keys.append(request.headers["idempotency-key"])
        job_id = self.jobs.setdefault(self.keys[-1], f"job-{len(self.jobs)}")
        return {
            "accepted": True,
            "job_id": job_id,
            "status": "queued",
            "message": "queued",
            "status_url": f"/inference/status/{job_id}",
            "result_url": f"/inference/result/{job_id}",
        }

    async def _status(self, job_id: str, request: Request) -> dict[str, object]:
        self.waits.append(request.query_params.get("wait"))
        self.asked.set()
        states = self.states[job_id]
        state = states.pop(0) if len(states) > 1 else states[0]
        if state == "held":
            await asyncio.sleep(0.3)
            state = "processing"
        return {"id": job_id, "status": state, "callback": {"status": "delivered", "status_code": 200}}


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    with service.server:
        yield service


@pytest.fixture(autouse=True)
def quick_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_BACKOFF_S", 0.001)


async def test_a_submit_sends_the_given_fields_and_a_key(service: Service) -> None:
    expiry = datetime(2030, 1, 1, tzinfo=UTC)
    async with AsyncDarkroomClient(service.server.url) as client:
        answer = await client.submit(prompt="a cat", width=512, expiry=expiry, odd=[1])
        other = await client.submit(prompt="a dog")

    assert (answer.accepted, answer.job_id, answer.status) == (True, "job-0", JobState.QUEUED)
    assert answer.status_url == "/inference/status/job-0"
    assert service.bodies[0] == {"prompt": "a cat", "width": 512, "expiry": "2030-01-01T00:00:00Z", "odd": [1]}
    assert other.job_id == "job-1"
    assert service.keys[0] != service.keys[1]


async def test_a_typed_request_sends_only_what_was_set_and_fields_override_it(service: Service) -> None:
    request = InferenceRequest(prompt="a cat", seed=None, width=64)
    async with AsyncDarkroomClient(service.server.url) as client:
        await client.submit(request, width=128, idempotency_key="mine")

    assert service.bodies == [{"prompt": "a cat", "seed": None, "width": 128}]
    assert service.keys == ["mine"]


async def test_a_submit_whose_answer_was_lost_is_repeated_and_accepted_once(service: Service) -> None:
    service.cuts = 2
    async with AsyncDarkroomClient(service.server.url) as client:
        answer = await client.submit(prompt="a cat")

    assert answer.job_id == "job-0"
    assert len(service.keys) == 3
    assert len(set(service.keys)) == 1
    assert len(service.jobs) == 1


async def test_repeats_are_bounded(service: Service) -> None:
    service.cuts = 99
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ServiceUnreachableError, match=r"POST /inference .* 3 attempt") as caught:
            await client.submit(prompt="a cat")

    assert caught.value.attempts == len(service.keys) == 3


async def test_a_redelivery_that_may_have_arrived_is_not_repeated(service: Service) -> None:
    service.cuts = 1
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ServiceUnreachableError, match="1 attempt"):
            await client.redeliver("job-0")

    assert service.paths["POST /inference/job-0/redeliver"] == 1


async def test_an_absent_service_is_told_at_once_by_every_call() -> None:
    with BackgroundServer(FastAPI(), probe_path="/openapi.json") as server:
        url = server.url
    async with AsyncDarkroomClient(url) as client:
        for ask in (client.health(), client.wait("job-0", timeout_s=60), client.redeliver("job-0")):
            with pytest.raises(ServiceUnreachableError, match="base URL is right"):
                await ask


async def test_an_answer_that_takes_too_long_is_given_up(service: Service) -> None:
    service.states["job-0"] = ["held"]
    async with AsyncDarkroomClient(service.server.url, timeout_s=0.05) as client:
        with pytest.raises(ServiceUnreachableError, match="TimeoutError"):
            await client.status("job-0")
        held = await client.status("job-0", wait_s=5)

    assert held.status is JobState.PROCESSING
    assert service.waits == [None, None, None, "5"]


async def test_an_answer_without_end_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_ANSWER_BYTES", 1000)
    service.answers["/inference/result/job-0"] = [Response(PNG + b"x" * 1000)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError, match="longer than 1000 bytes"):
            await client.result("job-0")


async def test_a_status_is_read_under_either_name_of_the_id(service: Service) -> None:
    service.states["job-0"] = ["completed"]
    async with AsyncDarkroomClient(service.server.url) as client:
        status = await client.status("job-0")

    assert status.job_id == "job-0"
    assert status.is_final
    assert status.callback is not None
    assert (status.callback.status, status.callback.status_code) == ("delivered", 200)


def test_fields_that_the_kit_does_not_know_are_kept() -> None:
    status = JobStatus.model_validate({"id": "a", "job_id": "a", "status": "queued", "novelty": 4})

    assert status.model_extra == {"id": "a", "novelty": 4}


@pytest.mark.parametrize("final", ["completed", "failed", "timeout"])
async def test_wait_ends_with_each_final_status(service: Service, final: str) -> None:
    service.states["job-0"] = ["queued", "queued", "processing", final]
    async with AsyncDarkroomClient(service.server.url) as client:
        status = await client.wait("job-0", timeout_s=20, poll_interval_s=0.01)

    assert status.status == final
    assert len(service.waits) == 4


async def test_wait_asks_the_service_to_hold_its_answer(service: Service) -> None:
    service.states["job-0"] = ["held", "completed"]
    async with AsyncDarkroomClient(service.server.url) as client:
        await client.wait("job-0", timeout_s=10.9, poll_interval_s=0.1)
        await client.wait("job-0", timeout_s=600)

    assert service.waits == ["10", "10", "25"]


async def test_wait_polls_a_service_that_does_not_hold_at_the_interval(service: Service) -> None:
    service.states["job-0"] = ["processing"]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobWaitTimeoutError, match="was last processing") as caught:
            await client.wait("job-0", timeout_s=0.5, poll_interval_s=0.2)

    assert isinstance(caught.value, TimeoutError)
    assert 1 <= len(service.waits) <= 3


async def test_wait_for_an_unknown_id_fails_at_once(service: Service) -> None:
    service.answers["/inference/status/none"] = [JSONResponse({"detail": "Job not found"}, 404)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobNotFoundError, match=r"Job not found\. Check the job id"):
            await client.wait("none", timeout_s=60)

    assert service.paths["GET /inference/status/none"] == 1


async def test_wait_outlasts_an_outage_once_the_job_was_seen(service: Service) -> None:
    service.states["job-0"] = ["queued"]
    async with AsyncDarkroomClient(service.server.url) as client:
        waiting = asyncio.create_task(client.wait("job-0", timeout_s=30, poll_interval_s=0.02))
        await asyncio.to_thread(service.asked.wait, 10)
        await asyncio.to_thread(service.server.stop)
        service.states["job-0"] = ["completed"]
        assert not waiting.done()
        await asyncio.to_thread(service.server.start)
        assert (await waiting).status is JobState.COMPLETED


async def test_wait_outlasts_busy_answers_but_not_a_refusal(service: Service) -> None:
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


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (302, UnexpectedAnswerError),
        (400, InvalidRequestError),
        (401, UnauthorizedError),
        (403, UnauthorizedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, InvalidRequestError),
        (418, UnexpectedAnswerError),
        (422, InvalidRequestError),
        (429, ServiceBusyError),
        (500, ServiceFailedError),
        (502, ServiceFailedError),
        (503, ServiceBusyError),
    ],
)
async def test_each_refusal_has_its_type_and_says_what_to_do(
    service: Service, code: int, error: type[AnswerError]
) -> None:
    service.answers["/inference"] = [JSONResponse({"detail": "because", "error_code": "why"}, code)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(AnswerError) as caught:
            await client.submit(prompt="a cat")

    assert type(caught.value) is error
    assert isinstance(caught.value, ServiceError)
    assert caught.value.status_code == code
    assert caught.value.error_code == "why"
    assert caught.value.detail.startswith("because")
    assert str(caught.value).startswith(f"POST /inference answered HTTP {code}: because")
    assert str(caught.value).endswith(f". {error.advice}")
    assert service.paths["POST /inference"] == 1


async def test_a_validation_error_names_the_fields(service: Service) -> None:
    faults = [
        {"loc": ["body", "width"], "msg": "too large", "type": "x"},
        {"loc": ["body", "seed"], "msg": "no integer", "type": "x"},
    ]
    service.answers["/inference"] = [JSONResponse({"detail": faults}, 422)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(InvalidRequestError, match=r"body\.width: too large; body\.seed: no integer"):
            await client.submit(prompt="a cat", width=10**9)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("99999", 3600.0), ("soon", None)])
async def test_a_busy_answer_tells_how_long_to_wait(service: Service, header: str, seconds: float | None) -> None:
    service.answers["/inference"] = [Response("full", 429, headers={"Retry-After": header})]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ServiceBusyError, match="full") as caught:
            await client.submit(prompt="a cat")

    assert caught.value.retry_after_s == seconds


async def test_a_redirect_is_not_followed(service: Service) -> None:
    service.answers["/health"] = [RedirectResponse("/elsewhere")]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.health()

    assert "GET /elsewhere" not in service.paths


@pytest.mark.parametrize("body", ["no json", '{"accepted": true}', '{"job_id": "a", "status": "odd"}', "[]"])
async def test_an_answer_of_another_shape_is_unexpected(service: Service, body: str) -> None:
    service.answers["/inference"] = [Response(body)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError, match=r"the body is no SubmitAnswer: .*Check that the base URL"):
            await client.submit(prompt="a cat")


async def test_pictures_come_as_png_bytes_from_both_addresses(service: Service) -> None:
    service.answers["/inference/result/job-0"] = [Response(PNG, media_type="image/png")]
    service.answers["/images/job-0.png"] = [Response(PNG, media_type="image/png")]
    async with AsyncDarkroomClient(service.server.url) as client:
        assert await client.result("job-0") == PNG
        assert await client.image("job-0") == PNG


async def test_a_result_that_is_no_png_or_absent_is_an_error(service: Service) -> None:
    service.answers["/inference/result/job-0"] = [Response("<html>"), JSONResponse({"detail": "none"}, 404)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError, match="not a PNG"):
            await client.result("job-0")
        with pytest.raises(PictureNotFoundError, match="Read the job's status first"):
            await client.result("job-0")


async def test_jobs_pass_filter_limit_and_cursor_and_come_in_pages(service: Service) -> None:
    asked: list[dict[str, str]] = []

    @service.app.get("/jobs")
    async def jobs(request: Request) -> dict[str, object]:
        asked.append(dict(request.query_params))
        return {"inference_jobs": [{"id": "job-0", "status": "failed"}], "next_cursor": 7}

    async with AsyncDarkroomClient(service.server.url) as client:
        page = await client.jobs(status=JobState.FAILED, limit=1, cursor="c1")
        await client.jobs(cursor=page.next_cursor)

    assert [job.job_id for job in page.inference_jobs] == ["job-0"]
    assert page.next_cursor == 7
    assert asked == [{"status": "failed", "limit": "1", "cursor": "c1"}, {"cursor": "7"}]


async def test_cancel_and_redeliver_read_a_body_or_none(service: Service) -> None:
    service.answers["/inference/job-0"] = [
        JSONResponse({"id": "job-0", "status": "failed"}),
        Response(status_code=204),
        JSONResponse({"detail": "final"}, 409),
    ]
    service.answers["/inference/job-0/redeliver"] = [
        JSONResponse({"job_id": "job-0", "callback": {"status": "failed", "attempts": 2}}, 202),
        JSONResponse({"detail": "no such job"}, 404),
    ]
    async with AsyncDarkroomClient(service.server.url) as client:
        assert (await client.cancel("job-0")).status is JobState.FAILED
        assert (await client.cancel("job-0")).job_id == "job-0"
        with pytest.raises(ConflictError):
            await client.cancel("job-0")
        again = await client.redeliver("job-0")
        with pytest.raises(JobNotFoundError):
            await client.redeliver("job-0")

    assert again.callback is not None
    assert again.callback.attempts == 2
    assert service.paths["DELETE /inference/job-0"] == 3


async def test_health_and_root_are_read(service: Service) -> None:
    service.answers["/"] = [JSONResponse({"name": "Darkroom", "version": "1.2.3", "endpoints": {}})]
    async with AsyncDarkroomClient(service.server.url) as client:
        health = await client.health()
        root = await client.root()

    assert health.status == "healthy"
    assert (root.name, root.version) == ("Darkroom", "1.2.3")


@pytest.mark.parametrize(
    ("job_id", "segment"), [("../../jobs", "..%2F..%2Fjobs"), ("..", "%2E%2E"), ("a b?c", "a%20b%3Fc")]
)
async def test_an_id_stays_one_segment_of_the_path(service: Service, job_id: str, segment: str) -> None:
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobNotFoundError):
            await client.cancel(job_id)

    assert list(service.paths)[-1] == f"DELETE /inference/{segment}"


async def test_an_empty_id_is_refused_without_a_call(service: Service) -> None:
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ValueError, match="job id is empty"):
            await client.status("")


@pytest.mark.parametrize("url", ["localhost:8091", "", "ftp://host", "http://"])
def test_what_is_no_base_url_is_refused_when_the_client_is_made(url: str) -> None:
    for make in (AsyncDarkroomClient, DarkroomClient):
        with pytest.raises(ValueError, match="Not a base URL"):
            make(url)


async def test_a_base_url_may_have_a_path_and_headers_go_along(service: Service) -> None:
    seen: list[str | None] = []

    @service.app.get("/behind/health")
    async def health(request: Request) -> dict[str, str]:
        seen.append(request.headers.get("authorization"))
        return {"status": "healthy"}

    headers = {"Authorization": "Bearer x"}
    async with AsyncDarkroomClient(f"{service.server.url}/behind/", headers=headers) as client:
        assert (await client.health()).status == "healthy"

    assert seen == ["Bearer x"]


async def test_a_given_transport_carries_the_calls(service: Service) -> None:
    transport = httpx.ASGITransport(service.app)
    async with AsyncDarkroomClient("http://inside", transport=transport) as client:
        assert (await client.health()).status == "healthy"


def test_the_synchronous_client_does_the_same(service: Service) -> None:
    service.states["job-0"] = ["queued", "completed"]
    service.answers = {
        "/": [JSONResponse({"name": "Darkroom", "version": "1"})],
        "/jobs": [JSONResponse({"inference_jobs": []})],
        "/images/job-0.png": [Response(PNG)],
        "/inference/result/job-0": [Response(PNG)],
        "/inference/job-0": [Response(status_code=204)],
        "/inference/job-0/redeliver": [Response(status_code=202)],
    }
    service.cuts = 1
    with DarkroomClient(service.server.url) as client:
        job_id = client.submit(InferenceRequest(prompt="a cat"), seed=1).job_id
        assert client.status(job_id).status is JobState.QUEUED
        assert client.wait(job_id, timeout_s=10).status is JobState.COMPLETED
        assert client.result(job_id) == client.image(job_id) == PNG
        assert client.jobs().inference_jobs == ()
        assert client.cancel(job_id).job_id == client.redeliver(job_id).job_id == job_id
        assert client.health().status == "healthy"
        assert client.root().version == "1"
        with pytest.raises(PictureNotFoundError):
            client.result("none")

    assert len(service.jobs) == 1


def test_the_synchronous_client_leaves_no_thread_behind(service: Service) -> None:
    def client_threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "darkroom-client"]

    client = DarkroomClient(service.server.url)
    assert len(client_threads()) == 1
    client.health()
    client.close()
    client.close()

    assert client_threads() == []


def test_an_error_inside_the_with_block_ends_calls_that_still_wait(service: Service) -> None:
    service.states["job-0"] = ["queued"]

    with ThreadPoolExecutor(1) as pool:
        with suppress(KeyError), DarkroomClient(service.server.url) as client:
            waiting = pool.submit(client.wait, "job-0", timeout_s=3600)
            assert service.asked.wait(10)
            raise KeyError
        with pytest.raises(CancelledError):
            waiting.result(10)
