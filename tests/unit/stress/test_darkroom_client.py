import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from scripted_service import ScriptedService

from stress import calls
from stress.background_server import BackgroundServer
from stress.client import AsyncDarkroomClient, DarkroomClient
from stress.errors import (
    AnswerError,
    ConflictError,
    InvalidRequestError,
    JobNotFoundError,
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


@pytest.fixture
def service(scripted_service: ScriptedService) -> ScriptedService:
    return scripted_service


async def test_a_submit_sends_the_given_fields_and_a_key(service: ScriptedService) -> None:
    expiry = datetime(2030, 1, 1, tzinfo=UTC)
    async with AsyncDarkroomClient(service.server.url) as client:
        answer = await client.submit(prompt="a cat", width=512, expiry=expiry, odd=[1])
        other = await client.submit(prompt="a dog")

    assert (answer.accepted, answer.job_id, answer.status) == (True, "job-0", JobState.QUEUED)
    assert answer.status_url == "/inference/status/job-0"
    assert service.bodies[0] == {"prompt": "a cat", "width": 512, "expiry": "2030-01-01T00:00:00Z", "odd": [1]}
    assert other.job_id == "job-1"
    assert service.keys[0] != service.keys[1]


async def test_a_typed_request_sends_only_what_was_set_and_fields_override_it(service: ScriptedService) -> None:
    request = InferenceRequest(prompt="a cat", seed=None, width=64)
    async with AsyncDarkroomClient(service.server.url) as client:
        await client.submit(request, width=128, idempotency_key="mine")

    assert service.bodies == [{"prompt": "a cat", "seed": None, "width": 128}]
    assert service.keys == ["mine"]


async def test_a_submit_whose_answer_was_lost_is_repeated_and_accepted_once(service: ScriptedService) -> None:
    service.cuts = 2
    async with AsyncDarkroomClient(service.server.url) as client:
        answer = await client.submit(prompt="a cat")

    assert answer.job_id == "job-0"
    assert len(service.keys) == 3
    assert len(set(service.keys)) == 1
    assert len(service.jobs) == 1


async def test_repeats_are_bounded(service: ScriptedService) -> None:
    service.cuts = 99
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ServiceUnreachableError, match=r"POST /inference .* 3 attempt") as caught:
            await client.submit(prompt="a cat")

    assert caught.value.attempts == len(service.keys) == 3


async def test_a_redelivery_that_may_have_arrived_is_not_repeated(service: ScriptedService) -> None:
    service.cuts = 1
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ServiceUnreachableError, match="1 attempt"):
            await client.redeliver("job-0")

    assert service.paths["POST /inference/job-0/redeliver"] == 1


@pytest.mark.usefixtures("quick_repeats")
async def test_an_absent_service_is_told_at_once_by_every_call() -> None:
    with BackgroundServer(FastAPI(), probe_path="/openapi.json") as server:
        url = server.url
    async with AsyncDarkroomClient(url) as client:
        for ask in (client.health(), client.wait("job-0", timeout_s=60), client.redeliver("job-0")):
            with pytest.raises(ServiceUnreachableError, match="base URL is right"):
                await ask


async def test_an_answer_that_takes_too_long_is_given_up(service: ScriptedService) -> None:
    service.states["job-0"] = ["held"]
    async with AsyncDarkroomClient(service.server.url, timeout_s=0.05) as client:
        with pytest.raises(ServiceUnreachableError, match="TimeoutError"):
            await client.status("job-0")
        held = await client.status("job-0", wait_s=5)

    assert held.status is JobState.PROCESSING
    assert service.waits == [None, None, None, "5"]


async def test_an_answer_without_end_is_refused(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_ANSWER_BYTES", 1000)
    service.answers["/inference/result/job-0"] = [Response(PNG + b"x" * 1000)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError, match="longer than 1000 bytes"):
            await client.result("job-0")


async def test_a_status_is_read_under_either_name_of_the_id(service: ScriptedService) -> None:
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
    service: ScriptedService, code: int, error: type[AnswerError]
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


async def test_a_validation_error_names_the_fields(service: ScriptedService) -> None:
    faults = [
        {"loc": ["body", "width"], "msg": "too large", "type": "x"},
        {"loc": ["body", "seed"], "msg": "no integer", "type": "x"},
    ]
    service.answers["/inference"] = [JSONResponse({"detail": faults}, 422)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(InvalidRequestError, match=r"body\.width: too large; body\.seed: no integer"):
            await client.submit(prompt="a cat", width=10**9)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("99999", 3600.0), ("soon", None)])
async def test_a_busy_answer_tells_how_long_to_wait(
    service: ScriptedService, header: str, seconds: float | None
) -> None:
    service.answers["/inference"] = [Response("full", 429, headers={"Retry-After": header})]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ServiceBusyError, match="full") as caught:
            await client.submit(prompt="a cat")

    assert caught.value.retry_after_s == seconds


async def test_a_redirect_is_not_followed(service: ScriptedService) -> None:
    service.answers["/health"] = [RedirectResponse("/elsewhere")]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.health()

    assert "GET /elsewhere" not in service.paths


@pytest.mark.parametrize("body", ["no json", '{"accepted": true}', '{"job_id": "a", "status": "odd"}', "[]"])
async def test_an_answer_of_another_shape_is_unexpected(service: ScriptedService, body: str) -> None:
    service.answers["/inference"] = [Response(body)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError, match=r"the body is no SubmitAnswer: .*Check that the base URL"):
            await client.submit(prompt="a cat")


async def test_pictures_come_as_png_bytes_from_both_addresses(service: ScriptedService) -> None:
    service.answers["/inference/result/job-0"] = [Response(PNG, media_type="image/png")]
    service.answers["/images/job-0.png"] = [Response(PNG, media_type="image/png")]
    async with AsyncDarkroomClient(service.server.url) as client:
        assert await client.result("job-0") == PNG
        assert await client.image("job-0") == PNG


async def test_a_result_that_is_no_png_or_absent_is_an_error(service: ScriptedService) -> None:
    service.answers["/inference/result/job-0"] = [Response("<html>"), JSONResponse({"detail": "none"}, 404)]
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(UnexpectedAnswerError, match="not a PNG"):
            await client.result("job-0")
        with pytest.raises(PictureNotFoundError, match="Read the job's status first"):
            await client.result("job-0")


async def test_jobs_pass_filter_limit_and_cursor_and_come_in_pages(service: ScriptedService) -> None:
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


async def test_cancel_and_redeliver_read_a_body_or_none(service: ScriptedService) -> None:
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


async def test_health_and_root_are_read(service: ScriptedService) -> None:
    service.answers["/"] = [JSONResponse({"name": "Darkroom", "version": "1.2.3", "endpoints": {}})]
    async with AsyncDarkroomClient(service.server.url) as client:
        health = await client.health()
        root = await client.root()

    assert health.status == "healthy"
    assert (root.name, root.version) == ("Darkroom", "1.2.3")


@pytest.mark.parametrize(
    ("job_id", "segment"), [("../../jobs", "..%2F..%2Fjobs"), ("..", "%2E%2E"), ("a b?c", "a%20b%3Fc")]
)
async def test_an_id_stays_one_segment_of_the_path(service: ScriptedService, job_id: str, segment: str) -> None:
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(JobNotFoundError):
            await client.cancel(job_id)

    assert list(service.paths)[-1] == f"DELETE /inference/{segment}"


async def test_an_empty_id_is_refused_without_a_call(service: ScriptedService) -> None:
    async with AsyncDarkroomClient(service.server.url) as client:
        with pytest.raises(ValueError, match="job id is empty"):
            await client.status("")


@pytest.mark.parametrize("url", ["localhost:8091", "", "ftp://host", "http://"])
def test_what_is_no_base_url_is_refused_when_the_client_is_made(url: str) -> None:
    for make in (AsyncDarkroomClient, DarkroomClient):
        with pytest.raises(ValueError, match="Not a base URL"):
            make(url)


async def test_a_base_url_may_have_a_path_and_headers_go_along(service: ScriptedService) -> None:
    seen: list[str | None] = []

    @service.app.get("/behind/health")
    async def health(request: Request) -> dict[str, str]:
        seen.append(request.headers.get("authorization"))
        return {"status": "healthy"}

    headers = {"Authorization": "Bearer x"}
    async with AsyncDarkroomClient(f"{service.server.url}/behind/", headers=headers) as client:
        assert (await client.health()).status == "healthy"

    assert seen == ["Bearer x"]


async def test_a_given_transport_carries_the_calls(service: ScriptedService) -> None:
    transport = httpx.ASGITransport(service.app)
    async with AsyncDarkroomClient("http://inside", transport=transport) as client:
        assert (await client.health()).status == "healthy"


def test_the_synchronous_client_does_the_same(service: ScriptedService) -> None:
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


def test_the_synchronous_client_leaves_no_thread_behind(service: ScriptedService) -> None:
    def client_threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "darkroom-client"]

    client = DarkroomClient(service.server.url)
    assert len(client_threads()) == 1
    client.health()
    client.close()
    client.close()

    assert client_threads() == []


def test_an_error_inside_the_with_block_ends_calls_that_still_wait(service: ScriptedService) -> None:
    service.states["job-0"] = ["queued"]

    with ThreadPoolExecutor(1) as pool:
        with suppress(KeyError), DarkroomClient(service.server.url) as client:
            waiting = pool.submit(client.wait, "job-0", timeout_s=3600)
            assert service.asked.wait(10)
            raise KeyError
        with pytest.raises(CancelledError):
            waiting.result(10)
