"""Where the callbacks of a check arrive: a receiver in this process, or one elsewhere that is read over HTTP."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import httpx
from pydantic import ValidationError

from stress.bounded import ACCEPT_ENCODING, AnswerTooLong, read_bounded
from stress.callback_server import CallbackServer
from stress.checks.session import Inbox
from stress.errors import CallbackWaitTimeoutError, KitError
from stress.receiver.entries import CallbackEntry, CallbackList

REMOTE_TIMEOUT_S = 10.0
"""For connecting and for each read."""
REMOTE_WHOLE_S = 30.0
"""For a whole answer: a list of thousands of callbacks, or a picture."""
MAX_REMOTE_BYTES = 64 * 1024 * 1024
"""Above the longest list of this kit's receiver, and above any picture that it takes."""
REMOTE_PATIENCE_S = 20.0
"""For how long a receiver that has answered before is asked again: its restart must not end a soak of a night."""
STRANGER_PATIENCE_S = 0.5
"""The same for one that has never answered: most likely there is none."""
FIRST_INTERVAL_S = 0.2
LONGEST_INTERVAL_S = 2.0


class InboxUnreachableError(KitError):
    """The receiver elsewhere does not answer, or not as a receiver does."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"The callback receiver at {url} cannot be read: {reason}. Start one there (the command callback-server), "
            "or correct the callback base URL."
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    url: str
    status_code: int
    content: bytes


@runtime_checkable
class FaultyInbox(Inbox, Protocol):
    """An inbox that can be told to treat callbacks badly, so that a service's answer to that can be checked."""

    async def misbehave(
        self, job_id: str, *, times: int = 1, answer_status: int | None = None, redirect_to: str | None = None
    ) -> bool:
        """Answer the job's next callbacks so; they are recorded all the same. False if the receiver cannot."""


class LocalInbox:
    """The inbox of a receiver in this process, which services reach at `base_url` (None: its own address).

    The two differ where the receiver binds all addresses and the service lives in a container or on another machine.
    """

    def __init__(self, server: CallbackServer, base_url: str | None = None) -> None:
        self._server = server
        self._base_url = base_url

    @property
    def callback_url(self) -> str:
        """The address to submit as `callback_url`."""
        return self._server.callback_url if self._base_url is None else f"{self._base_url.rstrip('/')}/callback"

    async def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Return the job's callbacks in order of arrival."""
        return self._server.entries_for(job_id)

    async def entries(self) -> tuple[CallbackEntry, ...]:
        """Return every callback that the receiver remembers."""
        return self._server.entries()

    async def wait_for(self, job_id: str, *, count: int = 1, timeout_s: float) -> tuple[CallbackEntry, ...]:
        """Wait for `count` callbacks for the job; return what there is when `timeout_s` is over."""
        try:
            return await self._server.wait_for_async(job_id, count, timeout_s=timeout_s)
        except CallbackWaitTimeoutError:
            return self._server.entries_for(job_id)

    async def picture(self, entry: CallbackEntry) -> bytes | None:
        """Return the picture that came with this callback; None without one, or if it is not kept (any more)."""
        return await asyncio.to_thread(self._server.picture, entry)

    async def misbehave(
        self, job_id: str, *, times: int = 1, answer_status: int | None = None, redirect_to: str | None = None
    ) -> bool:
        """Answer the job's next callbacks so."""
        self._server.misbehave(job_id=job_id, times=times, answer_status=answer_status, redirect_to=redirect_to)
        return True


class RemoteInbox:
    """The inbox of a receiver elsewhere, read over HTTP; use it as a context manager, or call `aclose`.

    Reads the list at `/callbacks`, which receivers of the protocol have had from the first. Where the receiver is
    this kit's, pictures come from `/pictures` and misbehaviour is set at `/misbehaviour`, which from another machine
    needs its `control_token`; where not, pictures are None, and what the service lets one download stands in.
    Every method raises `InboxUnreachableError` when the receiver does not answer.
    """

    def __init__(self, base_url: str, *, control_token: str | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._client = httpx.AsyncClient(base_url=self._base_url, timeout=REMOTE_TIMEOUT_S, headers=ACCEPT_ENCODING)
        self._has_answered = False
        self._credentials = {"Authorization": f"Bearer {control_token}"} if control_token else {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @property
    def callback_url(self) -> str:
        """The address to submit as `callback_url`."""
        return f"{self._base_url}/callback"

    async def entries_for(self, job_id: str) -> tuple[CallbackEntry, ...]:
        """Return the job's callbacks in order of arrival."""
        # A receiver that does not know the filter answers with all of them.
        return tuple(entry for entry in await self._list({"job_id": job_id}) if entry.job_id == job_id)

    async def entries(self) -> tuple[CallbackEntry, ...]:
        """Return every callback that the receiver remembers."""
        return await self._list({})

    async def wait_for(self, job_id: str, *, count: int = 1, timeout_s: float) -> tuple[CallbackEntry, ...]:
        """Wait for `count` callbacks for the job; return what there is when `timeout_s` is over."""
        deadline = time.monotonic() + timeout_s
        interval_s = FIRST_INTERVAL_S
        while True:
            entries = await self.entries_for(job_id)
            left_s = deadline - time.monotonic()
            if len(entries) >= count or left_s <= 0:
                return entries
            await asyncio.sleep(min(interval_s, left_s))
            interval_s = min(interval_s * 1.5, LONGEST_INTERVAL_S)

    async def picture(self, entry: CallbackEntry) -> bytes | None:
        """Return the picture that came with this callback, if the receiver shows it."""
        if entry.sha256 is None:
            return None
        answer = await self._call("GET", f"/pictures/{entry.sha256}.bin")
        whole = answer.status_code == 200 and hashlib.sha256(answer.content).hexdigest() == entry.sha256
        return answer.content if whole else None

    async def misbehave(
        self, job_id: str, *, times: int = 1, answer_status: int | None = None, redirect_to: str | None = None
    ) -> bool:
        """Answer the job's next callbacks so; False if the receiver cannot, or does not let this caller."""
        asked = {"job_id": job_id, "times": times, "answer_status": answer_status, "redirect_to": redirect_to}
        told = {key: value for key, value in asked.items() if value is not None}
        answer = await self._call("POST", "/misbehaviour", json=told, headers=self._credentials)
        return answer.status_code == 200

    async def _list(self, params: Mapping[str, str]) -> tuple[CallbackEntry, ...]:
        answer = await self._call("GET", "/callbacks", params=params)
        if answer.status_code != 200:
            raise InboxUnreachableError(answer.url, f"it answered HTTP {answer.status_code}")
        try:
            return CallbackList.model_validate_json(answer.content).callbacks
        except ValidationError as error:
            raise InboxUnreachableError(answer.url, f"its list is of another form ({error})") from error

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Answer:
        patience_s = REMOTE_PATIENCE_S if self._has_answered else STRANGER_PATIENCE_S
        give_up_at = time.monotonic() + (patience_s if method == "GET" else 0.0)
        interval_s = FIRST_INTERVAL_S
        while True:
            try:
                # httpx bounds each read; a body that drips would never end.
                async with (
                    asyncio.timeout(REMOTE_WHOLE_S),
                    self._client.stream(method, path, params=params, json=json, headers=headers) as response,
                ):
                    content = await read_bounded(response, MAX_REMOTE_BYTES)
                    if response.status_code < 500 or time.monotonic() >= give_up_at:
                        self._has_answered = True
                        return _Answer(str(response.url), response.status_code, content)
            except AnswerTooLong as error:
                raise InboxUnreachableError(f"{self._base_url}{path}", str(error)) from error
            except (httpx.HTTPError, TimeoutError) as error:
                if time.monotonic() >= give_up_at:
                    reason = f"{type(error).__name__}: {error}"
                    raise InboxUnreachableError(f"{self._base_url}{path}", reason) from error
            await asyncio.sleep(interval_s)
            interval_s = min(interval_s * 1.5, LONGEST_INTERVAL_S)
