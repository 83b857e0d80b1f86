"""One HTTP call to the service: bounded in time and size, repeated where that is safe, typed when refused."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import anyio
import httpx
from pydantic import BaseModel, ValidationError

from stress.bounded import ACCEPT_ENCODING, AnswerTooLong, read_bounded
from stress.errors import (
    AnswerError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServiceBusyError,
    ServiceFailedError,
    ServiceUnreachableError,
    UnauthorizedError,
    UnexpectedAnswerError,
)

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

MAX_ATTEMPTS = 3
FIRST_BACKOFF_S = 0.2
MAX_CONNECT_S = 10.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_DETAIL_CHARS = 500
MAX_RETRY_AFTER_S = 3600.0

# After these the request never reached the service, so repeating it is safe whatever it asks.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_REFUSALS: dict[int, type[AnswerError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    409: ConflictError,
    413: InvalidRequestError,
    422: InvalidRequestError,
}


@dataclass(frozen=True)
class Call:
    """What to ask for.

    `hold_s` is the time for which the service may hold the answer back; `repeatable` says that the service
    acts once however often the call arrives; `not_found` is the error that a 404 means here.
    """

    method: str
    path: str
    params: Mapping[str, str | int] | None = None
    json: object | None = None
    headers: Mapping[str, str] | None = None
    hold_s: float = 0.0
    repeatable: bool = True
    not_found: type[NotFoundError] = NotFoundError

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    call: Call
    status_code: int
    headers: httpx.Headers
    content: bytes

    def parse(self, model: type[Model]) -> Model:
        """Read the body as `model`.

        Raises:
            UnexpectedAnswerError: the body is not such a record.
        """
        try:
            return model.model_validate_json(self.content)
        except ValidationError as error:
            faults = "; ".join(_fault_text(fault["loc"], fault["msg"]) for fault in error.errors())
            raise self._unexpected(f"the body is no {model.__name__}: {faults}") from error

    def parse_about(self, job_id: str, model: type[Model]) -> Model:
        """Read the body as `model`, where a body may be absent or leave the job's id out."""
        known = _json_or_none(self.content)
        fields = known if isinstance(known, dict) else {}
        try:
            return model.model_validate({"job_id": job_id, **fields})
        except ValidationError as error:
            raise self._unexpected(f"the body is no {model.__name__}: {error}") from error

    def png(self) -> bytes:
        """Return the body, which must begin as a PNG does.

        Raises:
            UnexpectedAnswerError: it is something else.
        """
        if not self.content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise self._unexpected("the body is not a PNG picture")
        return self.content

    def refusal(self) -> AnswerError:
        """Return the typed error for this answer's code."""
        name, code, detail = str(self.call), self.status_code, _detail(self.content)
        error_code = _error_code(self.content)
        if code in {429, 503}:
            retry_after_s = _retry_after_s(self.headers)
            return ServiceBusyError(name, code, detail, error_code=error_code, retry_after_s=retry_after_s)
        if code == 404:
            kind: type[AnswerError] = self.call.not_found
        elif code >= 500:
            kind = ServiceFailedError
        else:
            kind = _REFUSALS.get(code, UnexpectedAnswerError)
        return kind(name, code, detail, error_code=error_code)

    def _unexpected(self, detail: str) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(str(self.call), self.status_code, detail[:MAX_DETAIL_CHARS])


class Caller:
    """A pool of connections to one service; `timeout_s` bounds each attempt from connecting to last byte."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        url = httpx.URL(base_url)
        if url.scheme not in {"http", "https"} or not url.host:
            raise ValueError(f"Not a base URL: {base_url!r}. Give one like http://localhost:8091.")
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={**ACCEPT_ENCODING, **(headers or {})},
            timeout=httpx.Timeout(None, connect=min(timeout_s, MAX_CONNECT_S)),
            # The caller's concurrency is the limit: hundreds of long polls must not queue for a connection.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            transport=transport,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def call(self, call: Call) -> Answer:
        """Make the call and return its 2xx answer.

        Raises:
            ServiceUnreachableError: no whole answer came.
            AnswerError: the service refused or failed; the subclass says which.
        """
        answer = await self._with_repeats(call)
        if not 200 <= answer.status_code < 300:
            raise answer.refusal()
        return answer

    async def _with_repeats(self, call: Call) -> Answer:
        attempt = 1
        while True:
            try:
                return await self._attempt(call)
            except (httpx.TransportError, TimeoutError) as error:
                safe = call.repeatable or isinstance(error, _NEVER_SENT)
                if not safe or attempt == MAX_ATTEMPTS:
                    raise ServiceUnreachableError(str(call), attempt, _reason(error)) from error
                logger.warning("%s: attempt %d got no answer (%s)", call, attempt, _reason(error))
            await anyio.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1))
            attempt += 1

    async def _attempt(self, call: Call) -> Answer:
        with anyio.fail_after(self._timeout_s + call.hold_s):
            async with self._client.stream(
                call.method, call.path, params=call.params, json=call.json, headers=call.headers
            ) as response:
                content = await _read(call, response)
                return Answer(call, response.status_code, response.headers, content)


async def _read(call: Call, response: httpx.Response) -> bytes:
    try:
        return await read_bounded(response, MAX_ANSWER_BYTES)
    except AnswerTooLong as error:
        raise UnexpectedAnswerError(str(call), response.status_code, str(error)) from error
    except httpx.DecodingError as error:
        detail = f"the body is not in its stated Content-Encoding ({error})"
        raise UnexpectedAnswerError(str(call), response.status_code, detail) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _json_or_none(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        # Too deeply nested to be read is as good as unreadable.
        return None


def _detail(content: bytes) -> str:
    body = _json_or_none(content)
    detail = body.get("detail", body) if isinstance(body, dict) else body
    if isinstance(detail, list):
        text = "; ".join(_one_fault(fault) for fault in detail)
    elif detail is None:
        text = content.decode(errors="replace").strip() or "no body"
    else:
        text = detail if isinstance(detail, str) else json.dumps(detail)
    return text[:MAX_DETAIL_CHARS].rstrip(". ")


def _error_code(content: bytes) -> str | None:
    body = _json_or_none(content)
    error_code = body.get("error_code") if isinstance(body, dict) else None
    return error_code if isinstance(error_code, str) else None


def _one_fault(fault: object) -> str:
    if isinstance(fault, dict) and isinstance(fault.get("loc"), list) and "msg" in fault:
        return _fault_text(tuple(fault["loc"]), str(fault["msg"]))
    return str(fault)


def _fault_text(location: tuple[object, ...], message: str) -> str:
    return f"{'.'.join(str(part) for part in location) or 'body'}: {message}"


def _retry_after_s(headers: httpx.Headers) -> float | None:
    try:
        return min(max(float(headers["retry-after"]), 0.0), MAX_RETRY_AFTER_S)
    except (KeyError, ValueError):
        return None
