"""Bodies that come too slowly."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from serve_app.api import errors
from serve_app.api.limits import BodyLimit

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/echo",
    "raw_path": b"/echo",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}
TIMEOUT_S = 0.5


def api() -> FastAPI:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(BodyLimit, timeout_s=TIMEOUT_S)

    @app.post("/echo")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(2 * TIMEOUT_S)
        return body

    return app


async def test_who_asks_late_still_gets_the_body() -> None:
    async def late(_scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(2 * TIMEOUT_S)
        await send(await receive())

    async def receive() -> Any:
        await asyncio.sleep(TIMEOUT_S / 10)
        return {"type": "http.request", "body": b"{}"}

    passed: list[Any] = []

    async def send(message: Any) -> None:
        passed.append(message)

    await BodyLimit(late, timeout_s=TIMEOUT_S)(SCOPE, receive, send)
    assert passed == [{"type": "http.request", "body": b"{}"}]


async def answer(parts: Sequence[tuple[float, bytes]], *, ends: bool) -> tuple[int, dict[str, Any]]:
    """Send each part after its pause; then, if the body does not end, nothing more. Returns status and body."""
    left = [*parts]
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        pause_s, part = left.pop(0)
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": part, "more_body": bool(left) or not ends}

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await api()(SCOPE, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


async def test_a_body_that_never_ends_gets_408() -> None:
    status, body = await answer([(0, b'{"a":')], ends=False)
    assert (status, body["error_code"]) == (408, "body_too_slow")
    assert "0.5 s" in body["detail"]


async def test_a_trickle_does_not_gain_time() -> None:
    trickle = [(TIMEOUT_S / 4, b" ")] * 20
    assert (await answer(trickle, ends=True))[0] == 408


@pytest.mark.parametrize("parts", [[(0, b"{}")], [(TIMEOUT_S / 10, b"{"), (TIMEOUT_S / 10, b"}")]])
async def test_the_time_of_the_work_does_not_count(parts: Sequence[tuple[float, bytes]]) -> None:
    assert await answer(parts, ends=True) == (200, {})
