"""How refusals and bad input look to a client: a status, a sentence, a stable code; never a stack or a path."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from callback.errors import (
    AllowanceUsed,
    IdempotencyKeyReused,
    JobIdInUse,
    JobNotFound,
    NotCancellable,
    NotRedeliverable,
    QueueFull,
    Refusal,
    ReplaysUnknown,
    RequestReplayed,
    TrackerError,
    Unavailable,
)
from observability.logs import get_logger
from serve_app.api.wire import InvalidRequest, Problem

RETRY_AFTER_S = 5
_STATUS: dict[type[TrackerError], int] = {
    JobNotFound: 404,
    JobIdInUse: 409,
    NotCancellable: 409,
    NotRedeliverable: 409,
    IdempotencyKeyReused: 422,
    QueueFull: 429,
    AllowanceUsed: 429,
    RequestReplayed: 401,
    ReplaysUnknown: 503,
    Unavailable: 503,
}

_log = get_logger("api")


class Refused(Exception):
    """The service refuses a request for a reason of its own."""

    def __init__(self, status: int, error_code: str, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.error_code = error_code
        self.retry_after_s = retry_after_s


class InvalidFieldError(Exception):
    """A field of the body is wrong in a way that its type cannot tell, such as an unknown model."""

    def __init__(self, field: str, sentence: str, kind: str = "value_error") -> None:
        super().__init__(sentence)
        self.field = field
        self.kind = kind


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of the refusals that a route may answer with."""
    sentences = {
        400: "The body is not JSON.",
        401: "The API key is missing or not valid. (Only where the server asks for keys.)",
        403: "The API key does not allow this. (Only where the server asks for keys.)",
        404: "There is no such job, or no picture of it yet.",
        408: "The body did not come within 30 s.",
        409: "The job's present state does not allow it.",
        410: "The picture was removed by retention.",
        413: "The body is larger than 1 MB.",
        422: "A field is missing or wrong; `detail` says which and why.",
        429: "Too many jobs are open, or the client asks for too much. Retry-After says when to try again.",
        500: "The stored picture is not the one that was rendered; it is not served.",
        503: "The service cannot take the request now. Retry-After says when to try again.",
    }
    return {
        status: {"description": sentences[status], "model": InvalidRequest | Problem if status == 422 else Problem}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make the app answer every refusal and every failure in the documented form."""
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(InvalidFieldError, _invalid_field)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(TrackerError, _tracker_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)


def problem(status: int, error_code: str, sentence: str, retry_after_s: float | None = None) -> JSONResponse:
    """Return a refusal; 429 and 503 carry Retry-After, 401 how to authenticate."""
    wait_s = RETRY_AFTER_S if retry_after_s is None else max(1, math.ceil(retry_after_s))
    headers = {"Retry-After": str(wait_s)} if status in {429, 503} else None
    if status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse({"detail": sentence, "error_code": error_code}, status, headers)


async def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    problems = error.errors()
    if any(one["type"] == "json_invalid" for one in problems):
        return _invalid_json()
    return _unprocessable([_explained(one) for one in problems])


def _invalid_json() -> JSONResponse:
    return problem(400, "invalid_json", "The body is not valid JSON. Send one JSON object as application/json.")


async def _invalid_field(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidFieldError)  # noqa: S101 - registered for this type
    return _unprocessable([{"type": error.kind, "loc": ["body", error.field], "msg": f"{error.field}: {error}"}])


def _unprocessable(details: Sequence[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({"detail": jsonable_encoder(details)}, 422)


def _explained(one: dict[str, Any]) -> dict[str, Any]:
    """Turn one of pydantic's findings into a sentence that names the field, what is wrong and the limit.

    The input itself is not repeated: it may be long, or a secret.
    """
    field = ".".join(str(part) for part in one["loc"][1:]) or "body"
    context = {key: value for key, value in (one.get("ctx") or {}).items() if isinstance(value, str | int | float)}
    match one["type"]:
        case "missing":
            sentence = "is required"
        case "value_error":
            sentence = one["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch":
            sentence = "may hold letters, digits, '.', '_' and '-', up to 128, and must not start with '.'"
        case "model_attributes_type" | "dict_type" | "model_type":
            sentence = "must be a JSON object, sent as application/json"
        case "string_unicode":
            sentence = "contains a character that is not text (half of a surrogate pair)"
        case "string_too_long":
            sentence = f"must have at most {context['max_length']} characters"
        case "greater_than_equal":
            sentence = f"must be at least {context['ge']:g}"
        case "less_than_equal":
            sentence = f"must be at most {context['le']}"
        case _:
            sentence = one["msg"].removeprefix("Input ").rstrip(".")
    shown = {"type": one["type"], "loc": list(one["loc"]), "msg": f"{field}: {sentence}."}
    return shown | ({"ctx": context} if context else {})


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)  # noqa: S101 - registered for this type
    return problem(error.status, error.error_code, str(error), error.retry_after_s)


async def _tracker_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TrackerError)  # noqa: S101 - registered for this type
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            wait_s = error.retry_after_s if isinstance(error, Refusal) else None
            return problem(status, error.code, str(error), wait_s)
    return await _unexpected(_request, error)


async def _http_exception(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    if error.status_code == 400:
        # FastAPI's word for a body that cannot even be decoded.
        return _invalid_json()
    codes = {404: "not_found", 405: "method_not_allowed", 408: "body_too_slow", 413: "body_too_large"}
    code = codes.get(error.status_code, "http_error")
    response = problem(error.status_code, code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    _log.error("unexpected error", exc_info=error)
    return problem(500, "internal_error", "Something unexpected went wrong on our side; the log has the details.")
