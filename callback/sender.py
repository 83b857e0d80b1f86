"""One delivery attempt over HTTP: the multipart body, the headers, the connection to a checked address."""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import aiohttp
import httpx
from yarl import URL

from callback.clock import iso
from callback.delivery_rows import Parcel
from callback.egress import Target
from callback.signing import Signer
from callback.upload import Request, UnusableConnection, Upload

PREVIEW_CHARS = 500
"""How much of an answer's body is kept; no more than that is read."""
CONNECT_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 1.0
"""How long a connection is kept for the receiver's next callback. Most servers close idle ones after 2 s or more, and
one that is closed while a callback is on its way costs that attempt."""
PREVIEW_TIMEOUT_S = 2.0
"""How long the body of an answer is waited for: its status, which is what counts, has come."""
CLOSE_TIMEOUT_S = 1.0
"""How long closing waits for connections to be closed."""
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reply:
    """The receiver's answer."""

    status_code: int
    preview: str
    retry_after_s: float | None

    @property
    def accepted(self) -> bool:
        """Whether the receiver took it: any 2xx. Redirects are not followed."""
        return 200 <= self.status_code < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver asks never to be tried again (410, as in Standard Webhooks)."""
        return self.status_code == 410


@dataclass(frozen=True, slots=True)
class Message:
    """A callback as it is sent: the body byte for byte as it is signed, and what goes before it."""

    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    sent_at: float


def compose(parcel: Parcel, image: bytes | None, signer: Signer, sent_at: float) -> Message:
    """Write the multipart body, with the picture if there is one, and sign it as of `sent_at`.

    It takes some milliseconds a megabyte: with a picture call it beside the event loop.
    """
    content_type, body = _form(parcel, image)
    signature = signer.sign(parcel.webhook_id, int(sent_at), body, parcel.signing_secret)
    headers = _headers(parcel, sent_at) | {"Content-Type": content_type, "webhook-signature": signature}
    return Message(headers, body, sent_at)


class NoReply(Exception):
    """No answer came: refused, reset, timed out, TLS failure. The message says which."""


class _NotConnectedError(NoReply):
    """Nothing was sent: the connection did not come about."""


class Sender:
    """Posts callbacks. Proxies of the environment and redirects are not used; answers are read up to a limit.

    Callbacks that follow each other closely share a connection, if name, port and checked address are the same.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        # The courier bounds how many attempts run, by receiver too; a second bound here would only hide waits from it.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, use_dns_cache=False, ssl=tls or True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=Request,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def post(self, message: Message, target: Target, *, timeout_s: float) -> Reply:
        """Send the callback to one of the target's addresses and return the answer, all within `timeout_s`.

        The next address is tried only if no connection to the one before came about. Raises `NoReply`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        for address in target.addresses[:-1]:
            try:
                return await self._post_to(address, message, target.url, deadline)
            except _NotConnectedError:
                continue
        return await self._post_to(target.addresses[-1], message, target.url, deadline)

    async def _post_to(self, address: str, message: Message, url: URL, deadline: float) -> Reply:
        timeout_s = deadline - asyncio.get_running_loop().time()
        if timeout_s <= 0:  # To the HTTP client 0 would mean for ever.
            raise NoReply("The time for this attempt was over before anything could be sent.")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, CONNECT_TIMEOUT_S))
        upload = Upload(message.body)
        try:
            async with self._session.post(
                url.with_host(address),
                data=upload,
                headers=message.headers | {"Host": _authority(url)},
                allow_redirects=False,
                timeout=timeout,
                # The name for TLS. Without TLS it keeps a connection to the same name: at one address there may be a
                # proxy that sends a whole connection where its first request was for.
                server_hostname=url.raw_host,
            ) as response:
                retry_after_s = _retry_after(response.headers.get("Retry-After"), message.sent_at)
                reply = Reply(response.status, await _preview(response.content), retry_after_s)
        except aiohttp.ConnectionTimeoutError:
            raise _NotConnectedError("The receiver could not be reached (no connection in time).") from None
        except TimeoutError:
            raise NoReply(f"The receiver did not answer within {round(timeout_s, 1):g} s.") from None
        except aiohttp.ClientConnectorError as error:
            raise _NotConnectedError(f"The receiver could not be reached ({_cause(error)}).") from None
        except UnusableConnection:
            raise NoReply("The receiver closed the connection, or answered on it, before the request.") from None
        except (aiohttp.ClientError, ssl.SSLError, OSError, asyncio.IncompleteReadError) as error:
            raise NoReply(f"The receiver did not answer ({_cause(error)}).") from None
        finally:
            upload.drop_the_rest()
        if reply.accepted and not upload.is_whole:
            raise NoReply(f"The receiver answered {reply.status_code} before the whole callback had been sent.")
        return reply

    async def close(self) -> None:
        """Close all connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._session.close()


def _form(parcel: Parcel, image: bytes | None) -> tuple[str, bytes]:
    """Return the body and its content type. (httpx only writes it: in half the time that aiohttp takes for it.)"""
    parts: list[tuple[str, tuple[str | None, str | bytes, str]]] = [
        ("job_id", (None, parcel.job_id, _TEXT)),
        ("status", (None, parcel.payload_status, _TEXT)),
        ("completed_at", (None, iso(parcel.finished_at), _TEXT)),
    ]
    if parcel.error is not None:
        parts.append(("error", (None, parcel.error, _TEXT)))
    if image is not None:
        parts.append(("image", (f"{parcel.job_id}.png", image, "image/png")))
        parts.append(("image_url", (None, parcel.image_url or "", _TEXT)))
    request = httpx.Request("POST", "http://receiver", files=parts)
    return request.headers["Content-Type"], request.read()


def _headers(parcel: Parcel, sent_at: float) -> dict[str, str]:
    headers = {
        "User-Agent": "darkroom-courier",
        "webhook-id": parcel.webhook_id,
        "webhook-timestamp": str(int(sent_at)),
        "webhook-attempt": str(parcel.attempt),
    }
    if parcel.secret is not None:
        headers["X-Callback-Secret"] = parcel.secret
    return headers


async def _preview(content: aiohttp.StreamReader) -> str:
    """Return the beginning of an answer's body, as much of it as comes soon."""
    start = bytearray()
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(PREVIEW_TIMEOUT_S):
            while len(start) < PREVIEW_CHARS * 4 and (chunk := await content.read(PREVIEW_CHARS * 4 - len(start))):
                start += chunk
    return start.decode("utf-8", "replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")[:PREVIEW_CHARS]


def _authority(url: URL) -> str:
    host = str(url.raw_host)
    host = f"[{host}]" if ":" in host else host
    return host if url.is_default_port() else f"{host}:{url.port}"


def _cause(error: BaseException) -> str:
    system = getattr(error, "os_error", None) or error
    return getattr(system, "strerror", None) or type(error).__name__


def _retry_after(value: str | None, now: float) -> float | None:
    """Read a Retry-After header: seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
