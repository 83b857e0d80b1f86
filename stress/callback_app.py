"""The receiver's HTTP face."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Form, Header, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, Field

from stress.callback_entries import CallbackEntry, CallbackList, CallbackLog
from stress.callback_faults import FaultScript
from stress.callback_page import CONTENT_SECURITY_POLICY, render_page
from stress.callback_pictures import PictureFolder, plain_name


class CallbackForm(BaseModel):
    """The parts of a callback."""

    job_id: Annotated[str, Field(min_length=1), AfterValidator(plain_name)]
    status: Annotated[str, Field(min_length=1, max_length=64)]
    completed_at: Annotated[str, Field(min_length=1, max_length=64)]
    image_url: Annotated[str | None, Field(max_length=4096)] = None
    error: Annotated[str | None, Field(max_length=16_384)] = None
    image: UploadFile | None = None


class CallbackHeaders(BaseModel):
    """The headers of a callback."""

    x_callback_secret: str | None = None
    webhook_id: Annotated[str | None, Field(max_length=256)] = None
    webhook_timestamp: Annotated[str | None, Field(max_length=64)] = None
    webhook_attempt: int | None = None
    webhook_signature: Annotated[str | None, Field(max_length=1024)] = None


@dataclass(frozen=True)
class Receiver:
    """What the face works on. `hang_up` cuts the connection from an address."""

    log: CallbackLog
    script: FaultScript
    pictures: PictureFolder
    secret: str | None
    hang_up: Callable[[tuple[str, int]], None]


def create_app(receiver: Receiver, max_body_bytes: int) -> FastAPI:
    """Build the app: `POST /callback`, `GET /callbacks` and the page at `/`."""
    app = FastAPI(
        title="Darkroom callback receiver",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        max_body_size=max_body_bytes,
    )

    @app.post("/callback")
    async def receive(
        request: Request,
        form: Annotated[CallbackForm, Form(media_type="multipart/form-data")],
        headers: Annotated[CallbackHeaders, Header()],
    ) -> Response:
        fault = receiver.script.take()
        picture = await form.image.read() if form.image is not None else None
        secret_ok = _is_right(receiver.secret, headers.x_callback_secret)
        usual_status = 401 if secret_ok is False else 200
        entry = _entry(form, headers, picture).model_copy(
            update={
                "secret_ok": secret_ok,
                "answered_status": None if fault.drop_connection else fault.answer_status or usual_status,
            }
        )
        if picture is not None and secret_ok is not False:
            path = await asyncio.to_thread(receiver.pictures.save, form.job_id, picture)
            entry = entry.model_copy(update={"saved_path": path})
        receiver.log.record(entry)
        await receiver.script.delay(fault.delay_s)
        if fault.drop_connection and request.client is not None:
            receiver.hang_up((request.client.host, request.client.port))
        elif fault.answer_status is not None:
            return Response(fault.body, fault.answer_status, headers=fault.answer_headers)
        return _usual_answer(usual_status)

    @app.get("/callbacks")
    async def list_callbacks(job_id: str | None = None) -> CallbackList:
        entries = receiver.log.entries() if job_id is None else receiver.log.entries_for(job_id)
        return CallbackList(callbacks=entries)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(
            render_page(receiver.log.entries()), headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        )

    return app


def _entry(form: CallbackForm, headers: CallbackHeaders, picture: bytes | None) -> CallbackEntry:
    return CallbackEntry(
        job_id=form.job_id,
        status=form.status,
        completed_at=form.completed_at,
        received_at=datetime.now(UTC),
        image_url=form.image_url,
        provided_secret=headers.x_callback_secret,
        has_image=picture is not None,
        error=form.error,
        image_size=None if picture is None else len(picture),
        sha256=None if picture is None else hashlib.sha256(picture).hexdigest(),
        webhook_id=headers.webhook_id,
        webhook_attempt=headers.webhook_attempt,
        webhook_timestamp=headers.webhook_timestamp,
        webhook_signature=headers.webhook_signature,
    )


def _is_right(secret: str | None, provided: str | None) -> bool | None:
    if secret is None:
        return None
    return hmac.compare_digest(secret.encode(), (provided or "").encode())


def _usual_answer(status: int) -> JSONResponse:
    if status == 401:
        sentence = "X-Callback-Secret is missing or wrong. Send the secret that was given at submission."
        return JSONResponse({"detail": sentence}, status_code=401)
    return JSONResponse({"status": "success", "message": "Callback received"})
