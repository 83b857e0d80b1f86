"""The typed client, asynchronous and synchronous.

Both speak to any service of the asynchronous protocol. A submit carries an `Idempotency-Key`, so that it may
be repeated after a broken connection; on an older service, which ignores the key, pass a `job_id` of your own.
"""

from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import anyio
import httpx
from anyio import CancelScope
from anyio.from_thread import start_blocking_portal
from pydantic_core import to_jsonable_python

from stress.calls import Call, Caller
from stress.errors import (
    JobNotFoundError,
    JobWaitTimeoutError,
    PictureNotFoundError,
    ServiceBusyError,
    ServiceFailedError,
    ServiceUnreachableError,
)
from stress.wire import (
    CancelAnswer,
    Health,
    InferenceRequest,
    JobPage,
    JobState,
    JobStatus,
    RedeliverAnswer,
    ServiceInfo,
    SubmitAnswer,
)

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_TIMEOUT_S = 30.0
# Above the service's own limits for rendering (300 s), with as much again for the queue.
DEFAULT_WAIT_S = 600.0
DEFAULT_POLL_INTERVAL_S = 1.0
# Proxies commonly cut an idle answer after 30 s or more.
LONG_POLL_S = 25

_TRANSIENT = (ServiceUnreachableError, ServiceBusyError, ServiceFailedError)


class AsyncDarkroomClient:
    """Asynchronous client of one service; use it as a context manager, or call `aclose`.

    `timeout_s` bounds each attempt of a call as a whole. `headers` go with every call (credentials).
    Every method raises `ServiceUnreachableError` when no answer comes and a subclass of `AnswerError` when
    the service refuses; those named in a method's own words come on top.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._caller = Caller(base_url, timeout_s=timeout_s, headers=headers, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; the client is of no use afterwards."""
        await self._caller.aclose()

    async def submit(
        self,
        request: InferenceRequest | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        repeat: bool = True,
        **fields: object,
    ) -> SubmitAnswer:
        """Submit a job, given as a request, as fields, or as a request with fields that override it.

        Fields are sent unchecked (dates as ISO 8601), so that a refusal can be provoked. Without an
        `idempotency_key` each submit gets a new one. Without `repeat` it is not sent again once it may have reached
        the service: for services that may ignore the key, and jobs without an id of their own.
        """
        typed = request.model_dump(mode="json", exclude_unset=True) if request else {}
        call = Call(
            "POST",
            "/inference",
            json={**typed, **to_jsonable_python(fields)},
            headers={"Idempotency-Key": idempotency_key or uuid4().hex},
            repeatable=repeat,
        )
        return (await self._caller.call(call)).parse(SubmitAnswer)

    async def status(self, job_id: str, wait_s: float | None = None) -> JobStatus:
        """Read a job's record; with `wait_s` the service may hold the answer until the job is final.

        Raises:
            JobNotFoundError: the service has no such job.
        """
        params = None if wait_s is None else {"wait": f"{wait_s:g}"}
        path = f"/inference/status/{_segment(job_id)}"
        call = Call("GET", path, params=params, hold_s=wait_s or 0.0, not_found=JobNotFoundError)
        return (await self._caller.call(call)).parse(JobStatus)

    async def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = DEFAULT_WAIT_S,
        poll_interval_s: float = DEFAULT_POLL_INTERVAL_S,
    ) -> JobStatus:
        """Wait until the job is final and return its record, whichever final status that is.

        Polls are held by a service that knows `?wait=`; any other is polled every `poll_interval_s`. A service that
        is busy (429, 503), and once the job was seen any outage, is waited out within `timeout_s`.

        Raises:
            JobNotFoundError: the service has no such job; at once.
            JobWaitTimeoutError: the job was not final within `timeout_s`.
        """
        seen: JobStatus | None = None
        trouble: Exception | None = None
        known: set[JobState] = set()
        deadline = anyio.current_time() + timeout_s
        with anyio.move_on_after(timeout_s):
            while True:
                asked_at = anyio.current_time()
                pause_s = poll_interval_s
                try:
                    status = await self.status(job_id, _long_poll_s(deadline - asked_at))
                except _TRANSIENT as error:
                    # A service that says that it is busy is there, and answers later.
                    if seen is None and not isinstance(error, ServiceBusyError):
                        raise
                    trouble = error
                    if isinstance(error, ServiceBusyError):
                        pause_s = max(pause_s, error.retry_after_s or 0.0)
                else:
                    if status.is_final:
                        return status
                    moved = seen is not None and status.status not in known
                    known.add(status.status)
                    seen, trouble = status, None
                    if moved:  # Services that hold polls answer then; to a status that comes and goes they do not.
                        continue
                    # A held poll has used up its interval already.
                    pause_s -= anyio.current_time() - asked_at
                await anyio.sleep(max(pause_s, 0.0))
        raise JobWaitTimeoutError(job_id, timeout_s, seen.status if seen else None) from trouble

    async def result(self, job_id: str) -> bytes:
        """Download a completed job's picture as PNG bytes, from the result address.

        Raises:
            PictureNotFoundError: the job has no picture (yet, or any more).
        """
        return await self._picture(f"/inference/result/{_segment(job_id)}")

    async def image(self, job_id: str) -> bytes:
        """Download a completed job's picture as PNG bytes, from the public image address.

        Raises:
            PictureNotFoundError: the job has no picture (yet, or any more).
        """
        return await self._picture(f"/images/{_segment(job_id)}.png")

    async def jobs(
        self,
        *,
        status: JobState | str | None = None,
        limit: int | None = None,
        cursor: int | str | None = None,
    ) -> JobPage:
        """List jobs; pass a page's `next_cursor` as `cursor` to get the next page."""
        given: dict[str, str | int | None] = {"status": status, "limit": limit, "cursor": cursor}
        params = {name: value for name, value in given.items() if value is not None}
        return (await self._caller.call(Call("GET", "/jobs", params=params))).parse(JobPage)

    async def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job that is not final.

        Raises:
            JobNotFoundError: the service has no such job.
            ConflictError: the job is final already.
        """
        call = Call("DELETE", f"/inference/{_segment(job_id)}", not_found=JobNotFoundError)
        return (await self._caller.call(call)).parse_about(job_id, CancelAnswer)

    async def redeliver(self, job_id: str) -> RedeliverAnswer:
        """Have a final job's callback sent again. Not repeated once it may have reached the service.

        Raises:
            JobNotFoundError: the service has no such job.
            ConflictError: the job is not final, or has no callback.
        """
        path = f"/inference/{_segment(job_id)}/redeliver"
        call = Call("POST", path, repeatable=False, not_found=JobNotFoundError)
        return (await self._caller.call(call)).parse_about(job_id, RedeliverAnswer)

    async def health(self) -> Health:
        """Read the service's health."""
        return (await self._caller.call(Call("GET", "/health"))).parse(Health)

    async def root(self) -> ServiceInfo:
        """Read the service's name and version."""
        return (await self._caller.call(Call("GET", "/"))).parse(ServiceInfo)

    async def _picture(self, path: str) -> bytes:
        return (await self._caller.call(Call("GET", path, not_found=PictureNotFoundError))).png()


class DarkroomClient:
    """Synchronous client with the methods, answers and errors of `AsyncDarkroomClient`.

    The asynchronous client runs on a thread of its own until `close`; several threads may share one client.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncDarkroomClient(base_url, timeout_s=timeout_s, headers=headers, transport=transport)
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(name="darkroom-client"))
        self._stack.callback(self._portal.call, self._client.aclose)
        self._running: set[CancelScope] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # Before the connections are closed: calls would be repeated on what is closed.
            self._portal.call(self._cancel_running)
        # The portal cancels what an interrupted call left running only when it is told of the error.
        self._stack.__exit__(kind, error, trace)

    async def _cancel_running(self) -> None:
        for scope in tuple(self._running):
            scope.cancel()

    def close(self) -> None:
        """Close every connection and end the client's thread; a second call does nothing."""
        self._stack.close()

    def submit(
        self,
        request: InferenceRequest | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        repeat: bool = True,
        **fields: object,
    ) -> SubmitAnswer:
        """Do as `AsyncDarkroomClient.submit`."""
        return self._run(self._client.submit, request, idempotency_key=idempotency_key, repeat=repeat, **fields)

    def status(self, job_id: str, wait_s: float | None = None) -> JobStatus:
        """Do as `AsyncDarkroomClient.status`."""
        return self._run(self._client.status, job_id, wait_s)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = DEFAULT_WAIT_S,
        poll_interval_s: float = DEFAULT_POLL_INTERVAL_S,
    ) -> JobStatus:
        """Do as `AsyncDarkroomClient.wait`."""
        return self._run(self._client.wait, job_id, timeout_s=timeout_s, poll_interval_s=poll_interval_s)

    def result(self, job_id: str) -> bytes:
        """Do as `AsyncDarkroomClient.result`."""
        return self._run(self._client.result, job_id)

    def image(self, job_id: str) -> bytes:
        """Do as `AsyncDarkroomClient.image`."""
        return self._run(self._client.image, job_id)

    def jobs(
        self,
        *,
        status: JobState | str | None = None,
        limit: int | None = None,
        cursor: int | str | None = None,
    ) -> JobPage:
        """Do as `AsyncDarkroomClient.jobs`."""
        return self._run(self._client.jobs, status=status, limit=limit, cursor=cursor)

    def cancel(self, job_id: str) -> CancelAnswer:
        """Do as `AsyncDarkroomClient.cancel`."""
        return self._run(self._client.cancel, job_id)

    def redeliver(self, job_id: str) -> RedeliverAnswer:
        """Do as `AsyncDarkroomClient.redeliver`."""
        return self._run(self._client.redeliver, job_id)

    def health(self) -> Health:
        """Do as `AsyncDarkroomClient.health`."""
        return self._run(self._client.health)

    def root(self) -> ServiceInfo:
        """Do as `AsyncDarkroomClient.root`."""
        return self._run(self._client.root)

    def _run(self, method: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def run() -> T:
            with CancelScope() as scope:
                self._running.add(scope)
                try:
                    return await method(*args, **kwargs)
                finally:
                    self._running.discard(scope)
            raise CancelledError("The client was closed.")

        return self._portal.call(run)


def _segment(job_id: str) -> str:
    """Quote an id so that it stays one segment of a path, whatever it holds."""
    if not job_id:
        raise ValueError("The job id is empty. Pass the `job_id` of the submit answer.")
    quoted = quote(job_id, safe="")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def _long_poll_s(left_s: float) -> int | None:
    # Whole seconds: a service may declare `wait` as a number or as an integer.
    return min(int(left_s), LONG_POLL_S) or None
