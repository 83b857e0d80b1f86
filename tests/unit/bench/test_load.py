"""The load generator and the receiver of callbacks."""

import asyncio
import time

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from bench.connections import Session
from bench.errors import BenchError
from bench.jobs import Order, ids_of
from bench.load import Call, burst
from bench.receiver import receiver
from stress.background_server import BackgroundServer
from stress.submit_rate import bare_server


async def test_a_burst_keeps_the_order_of_its_calls_and_times_each() -> None:
    with bare_server() as url:
        async with Session() as session:
            made = await burst(session, Order().calls(url, 20), 4)

    assert len(ids_of(made)) == 20
    assert made.calls().count == 20
    assert 0 < made.calls().p50_ms <= made.calls().p99_ms <= 1000 * (made.ended - made.began)


async def test_no_more_calls_are_made_at_once_than_asked_for() -> None:
    now = most = 0

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async with BackgroundServer(app) as server, Session() as session:
        await burst(session, [Call("GET", server.url)] * 12, 3)

    assert most == 3


async def test_one_failed_call_spoils_the_burst() -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        status = 503 if scope["path"] == "/busy" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"try later"})

    async with BackgroundServer(app) as server, Session() as session:
        with pytest.raises(BenchError, match="503 try later"):
            await burst(session, [Call("GET", server.url), Call("GET", f"{server.url}/busy")], 2)


def test_the_receiver_tells_when_it_has_parsed_a_callback() -> None:
    with receiver() as callbacks:
        before = time.time()
        httpx.post(
            callbacks.url,
            data={"job_id": "a", "status": "completed"},
            files={"image": ("a.png", b"picture", "image/png")},
            trust_env=False,
        )
        (received,) = callbacks.wait_for(["a"], timeout_s=5).values()
        assert before <= received <= time.time()
        with pytest.raises(BenchError, match="1 callbacks have not come"):
            callbacks.wait_for(["a", "b"], timeout_s=0)
