"""The bound on what a client may send."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import problem

MAX_BODY_BYTES = 1_000_000
_SENTENCE = f"The body is larger than {MAX_BODY_BYTES} bytes."


class BodyLimit:
    """Answer 413 to a body that is, or turns out to be, larger than the limit, without reading the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            await problem(413, "body_too_large", _SENTENCE)(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                # FastAPI lets this one pass while it reads the body, and our handler answers it.
                raise HTTPException(413, _SENTENCE)
            return message

        await self._app(scope, counting, send)
