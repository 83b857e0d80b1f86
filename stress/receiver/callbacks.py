"""`POST /callback` and the lists of what came: every callback is judged, recorded and answered."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Header, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stress.receiver.answers import misbehaved
from stress.receiver.desk import AtDesk, Desk, desk_of
from stress.receiver.entries import CallbackEntry, CallbackList, Refusal, RefusalList
from stress.receiver.faults import Turn
from stress.receiver.pictures import plain_name
from stress.receiver.signatures import SignatureVerdict, SignedHeaders

BODY_TIMEOUT_S = 60.0
"""How long a sender may take to send a body."""
_SHOWN_ID_CHARS = 200
_UNTRUSTED = {
    SignatureVerdict.MISSING: "The signature is missing. Send webhook-id, webhook-timestamp and webhook-signature.",
    SignatureVerdict.WRONG: "The signature is wrong. Sign the raw bytes of the body with the key of this receiver.",
    SignatureVerdict.STALE: "The signature is right, but webhook-timestamp is too far from now. Check both clocks.",
}


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

    x_callback_secret: Annotated[str | None, Field(max_length=4096)] = None
    webhook_id: Annotated[str | None, Field(max_length=256)] = None
    webhook_timestamp: Annotated[str | None, Field(max_length=64)] = None
    webhook_attempt: int | None = None
    webhook_signature: Annotated[str | None, Field(max_length=1024)] = None


class _RecordingRoute(APIRoute):
    """Reads the body whole before it is taken apart, so that a signature can be checked; records what is refused."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_recorded(request: Request) -> Response:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    await request.body()
            except TimeoutError:
                sentence = f"The body did not arrive within {BODY_TIMEOUT_S:g} s. Send it again."
                _refuse(request, 408, sentence)
                return JSONResponse({"detail": sentence}, 408, headers={"Connection": "close"})
            except ClientDisconnect:
                _refuse(request, None, "The sender broke off before the body was whole.")
                return Response(status_code=400)
            except HTTPException as error:
                _refuse(request, error.status_code, str(error.detail))
                raise
            try:
                return await handle(request)
            except HTTPException as error:
                _refuse(request, error.status_code, str(error.detail))
                raise
            except RequestValidationError as error:
                _refuse(request, 422, _sentence(error), _claimed_id(error))
                raise

        return handle_recorded


receiving = APIRouter(route_class=_RecordingRoute)
listing = APIRouter()


@receiving.post("/callback")
async def receive(
    request: Request,
    form: Annotated[CallbackForm, Form(media_type="multipart/form-data")],
    headers: Annotated[CallbackHeaders, Header()],
    desk: AtDesk,
) -> Response:
    """Take one callback, whatever it is worth; only a genuine one's picture is kept."""
    received_at = datetime.now(UTC)
    turn = desk.script.take(form.job_id)
    entry = await _judged(desk, request, form, headers, received_at)
    usual = _usual_answer(entry)
    fault = turn.misbehaviour
    answered = None if fault.drop_connection else fault.status or usual.status_code
    desk.storage.record(entry.model_copy(update={"answered_status": answered}))
    return await _answer(desk, request, turn, usual)


@listing.get("/callbacks")
async def list_callbacks(desk: AtDesk, job_id: str | None = None, after: int = 0) -> CallbackList:
    """All callbacks in order of arrival, or those of one job, or those with a number above `after`."""
    entries = desk.log.entries(after) if job_id is None else desk.log.entries_for(job_id)
    return CallbackList(callbacks=tuple(entry for entry in entries if entry.number > after))


@listing.get("/refused")
async def list_refused(desk: AtDesk, after: int = 0) -> RefusalList:
    """The latest requests to the callback address that were no callbacks."""
    return RefusalList(refused=desk.log.refusals(after), total=desk.log.total_refusals)


async def _judged(
    desk: Desk, request: Request, form: CallbackForm, headers: CallbackHeaders, received_at: datetime
) -> CallbackEntry:
    picture = await form.image.read() if form.image is not None else None
    entry = CallbackEntry(
        received_at=received_at,
        sender=request.client.host if request.client is not None else None,
        job_id=form.job_id,
        status=form.status,
        completed_at=form.completed_at,
        image_url=form.image_url,
        provided_secret=headers.x_callback_secret,
        secret_ok=_is_right(desk.secret, headers.x_callback_secret),
        has_image=picture is not None,
        error=form.error,
        image_size=None if picture is None else len(picture),
        webhook_id=headers.webhook_id,
        webhook_attempt=headers.webhook_attempt,
        webhook_timestamp=headers.webhook_timestamp,
        webhook_signature=headers.webhook_signature,
    )
    if picture is None and not desk.verifier.checks:
        return entry
    # Hashing and writing megabytes would hold up every other callback.
    return await asyncio.to_thread(_examined, desk, entry, await request.body(), picture)


def _examined(desk: Desk, entry: CallbackEntry, body: bytes, picture: bytes | None) -> CallbackEntry:
    signed = SignedHeaders(entry.webhook_id, entry.webhook_timestamp, entry.webhook_signature)
    entry = entry.model_copy(update={"signature": desk.verifier.verdict(signed, body)})
    if picture is None:
        return entry
    if not entry.is_genuine:
        return entry.model_copy(update={"sha256": hashlib.sha256(picture).hexdigest()})
    path, sha256 = desk.storage.save(entry.job_id, picture)
    return entry.model_copy(update={"saved_path": path, "sha256": sha256})


async def _answer(desk: Desk, request: Request, turn: Turn, usual: Response) -> Response:
    fault = turn.misbehaviour
    await desk.script.delay(turn, fault.delay_s)
    if fault.drop_connection and request.client is not None:
        desk.hang_up((request.client.host, request.client.port))
    return misbehaved(turn, usual, desk.script)


def _usual_answer(entry: CallbackEntry) -> JSONResponse:
    if entry.secret_ok is False:
        sentence = "X-Callback-Secret is missing or wrong. Send the secret that was given at submission."
        return JSONResponse({"detail": sentence}, status_code=401)
    if entry.signature.is_refusal:
        return JSONResponse({"detail": _UNTRUSTED[entry.signature]}, status_code=401)
    return JSONResponse({"status": "success", "message": "Callback received"})


def _is_right(secret: str | None, provided: str | None) -> bool | None:
    if secret is None:
        return None
    return hmac.compare_digest(secret.encode(), (provided or "").encode())


def _refuse(request: Request, status: int | None, reason: str, job_id: str | None = None) -> None:
    length = request.headers.get("content-length", "")
    refusal = Refusal(
        received_at=datetime.now(UTC),
        answered_status=status,
        sender=request.client.host if request.client is not None else None,
        reason=reason,
        job_id=job_id,
        size_bytes=int(length[:18]) if length.isascii() and length.isdigit() else None,
    )
    desk_of(request).storage.refuse(refusal)


def _sentence(error: RequestValidationError) -> str:
    parts = (
        f"{'.'.join(str(step) for step in fault['loc'][1:])}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()
    )
    return "; ".join(parts)[:2000]


def _claimed_id(error: RequestValidationError) -> str | None:
    body = error.body
    job_id = body.get("job_id") if hasattr(body, "get") else None
    return job_id[:_SHOWN_ID_CHARS] if isinstance(job_id, str) else None
