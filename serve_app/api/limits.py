"""The bounds on what a client may send, and how slowly."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import problem

MAX_BODY_BYTES = 1_000_000
BODY_TIMEOUT_S = 30.0
"""Until the whole body is there. A client that sends it byte by byte holds one of the ingress's places."""
_TOO_LARGE = f"The body is larger than {MAX_BODY_BYTES} bytes."


class BodyLimit:
    """Answer 413 to a body that is, or turns out to be, too large, without reading the rest; 408 to one too slow."""

    def __init__(self, app: ASGIApp, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            await problem(413, "body_too_large", _TOO_LARGE)(scope, receive, send)
            return
        received, whole = 0, False
        ends_at: float | None = None

        async def bounded() -> Message:
            nonlocal received, whole, ends_at
            if ends_at is None:
                # From when somebody asks: a long poll may have waited for longer before.
                ends_at = asyncio.get_running_loop().time() + self._timeout_s
            try:
                # What comes after the body is that the client goes away: whoever asks for it may wait.
                async with asyncio.timeout_at(None if whole else ends_at):
                    message = await receive()
            except TimeoutError:
                # FastAPI lets these pass while it reads the body, and our handler answers them.
                sentence = f"The body did not come within {self._timeout_s:g} s."
                raise HTTPException(408, sentence, headers={"Connection": "close"}) from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self._app(scope, bounded, send)
