import asyncio
import gzip
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from stress import calls
from stress.aiohttp_transport import AiohttpTransport
from stress.background_server import BackgroundServer
from stress.client import AsyncDarkroomClient
from stress.errors import JobNotFoundError, ServiceUnreachableError


class Echo(BackgroundServer):
    """Tells what it was asked; cuts the connection and waits where the path says so."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.asked: list[str] = []
        routes = [Route("/{path:path}", self._answer, methods=["GET", "POST"])]
        super().__init__(Starlette(routes=routes), probe_path="/ready")

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode()
        self.asked.append(path)
        match path:
            case "/cut":
                assert request.client is not None
                self.hang_up((request.client.host, request.client.port))
            case "/slow":
                self.waiting.set()
                await asyncio.sleep(60)
            case "/packed":
                return Response(gzip.compress(b"unpacked"), headers={"content-encoding": "gzip"})
            case "/elsewhere":
                return RedirectResponse("/ready")
        body = (await request.body()).decode()
        return JSONResponse(
            {"path": path, "query": str(request.query_params), "body": body, "x": request.headers.get("x")}
        )


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


async def test_path_query_headers_and_body_arrive_as_they_were_given(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url) as client:
        answer = await client.post("/a%2Fb%20c", params={"q": "1 2"}, content="bödy", headers={"x": "y"})

    assert answer.json() == {"path": "/a%2Fb%20c", "query": "q=1+2", "body": "bödy", "x": "y"}
    assert answer.headers["content-type"] == "application/json"


async def test_a_packed_body_is_unpacked_once(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url) as client:
        assert (await client.get("/packed")).text == "unpacked"


async def test_a_redirect_is_shown_and_not_followed(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url) as client:
        assert (await client.get("/elsewhere")).status_code == 307


async def test_a_connection_that_is_cut_is_no_connection_that_was_never_made(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url) as client:
        with pytest.raises(httpx.TransportError) as caught:
            await client.post("/cut")

    assert not isinstance(caught.value, (httpx.ConnectError, httpx.ConnectTimeout))
    assert echo.asked.count("/cut") == 1


async def test_where_nobody_listens_the_error_says_that_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=url) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/")


async def test_an_answer_that_does_not_come_is_a_read_timeout(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url, timeout=0.2) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/slow")


async def test_a_call_can_be_cancelled_and_the_next_one_works(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url, timeout=60) as client:
        call = asyncio.create_task(client.get("/slow"))
        await asyncio.to_thread(echo.waiting.wait, 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await client.get("/after")).json()["path"] == "/after"


async def test_hundreds_of_calls_at_once_do_not_wait_for_each_other(echo: Echo) -> None:
    async with httpx.AsyncClient(transport=AiohttpTransport(), base_url=echo.url, timeout=60) as client:
        answers = await asyncio.gather(*(client.get(f"/{index}") for index in range(300)))

    assert [answer.json()["path"] for answer in answers] == [f"/{index}" for index in range(300)]


async def test_the_client_gets_its_usual_errors_through_it(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_BACKOFF_S", 0.001)
    url = echo.url
    async with AsyncDarkroomClient(url, transport=AiohttpTransport()) as client:
        echo.stop()
        with pytest.raises(ServiceUnreachableError):
            await client.status("job")
    async with (
        BackgroundServer(Starlette(routes=[Route("/", lambda _: Response())])) as empty,
        AsyncDarkroomClient(empty.url, transport=AiohttpTransport()) as client,
    ):
        with pytest.raises(JobNotFoundError):
            await client.status("job")
