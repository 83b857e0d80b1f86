"""Requests that validators sign (Epistula): who sent one, for whom, and when.

Signed, with the sender's sr25519 key, is the text `{SHA-256 of the body}.{uuid}.{milliseconds since 1970}.{receiver}`.
Sender and receiver are ss58 addresses. Method, path and query are not covered: TLS must be in front of the service.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

SCHEME = "Epistula"
ADDRESS_PATTERN = r"^[1-9A-HJ-NP-Za-km-z]{46,50}$"
"""ss58 addresses."""
FRESH_S = 8.0
"""How far a request's timestamp may be from our clock, either way."""
MAX_UUID_CHARS = 128
_EMPTY_OBJECT = hashlib.sha256(b"{}").hexdigest()
_HEADERS = ("Epistula-Timestamp", "Epistula-UUID", "Epistula-Signed-By", "Epistula-Signed-For")


class NotSigned(Exception):
    """The request is not one that its sender has signed for us just now. The message says why, in a sentence."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a request says of itself: the sender's address, the request's own number, its moment in seconds.

    Signed is the digest of the body and `rest`.
    """

    sender: str
    uuid: str
    signed_at: float
    signature: str
    rest: str


def check_installed() -> None:
    """Raise RuntimeError if the library that checks signatures is missing."""
    if find_spec("bittensor_wallet") is None:
        raise RuntimeError("Signed requests (hotkey) need bittensor-wallet: install the extra `signed` on each node.")


def is_signed(headers: Mapping[str, str]) -> bool:
    """Tell whether a request means to be signed, rightly or not."""
    return headers.get("Authorization", "").startswith(f"{SCHEME} ") or any(name in headers for name in _HEADERS)


def read(headers: Mapping[str, str], *, hotkey: str, now: float) -> SignedRequest:
    """Read what a request to `hotkey` at the moment `now` (seconds) says of itself; `check` tells whether it is true.

    `headers` finds names whatever their case. Raises `NotSigned`.
    """
    signature = _signature(headers)
    timestamp, uuid, sender, receiver = (headers.get(name, "") for name in _HEADERS)
    if not (timestamp and uuid and sender and receiver):
        raise NotSigned(f"Missing headers. A signed request has {', '.join(_HEADERS)}.")
    if len(uuid) > MAX_UUID_CHARS:
        raise NotSigned(f"Epistula-UUID is longer than {MAX_UUID_CHARS} characters.")
    if receiver != hotkey:
        raise NotSigned("Invalid signed_for address. The request is signed for another receiver.")
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 16):
        raise NotSigned("Invalid Timestamp. Send milliseconds since 1970 as a decimal number.")
    request = SignedRequest(sender, uuid, int(timestamp) / 1000, signature, f".{uuid}.{timestamp}.{receiver}")
    check_fresh(request, now)
    return request


def check_fresh(request: SignedRequest, now: float) -> None:
    """Raise `NotSigned` if the request is too old, or too early, to count at the moment `now` (seconds)."""
    if abs(now - request.signed_at) > FRESH_S:
        word = "stale" if request.signed_at < now else "early"
        raise NotSigned(f"Request is too {word}. Its timestamp may be {FRESH_S:g} s from our clock; check yours.")


def check(request: SignedRequest, method: str, body: bytes) -> None:
    """Check the signature. Whether the sender is allowed, and the request new, is for others to tell.

    Raises `NotSigned`.
    """
    from bittensor_wallet import Keypair  # noqa: PLC0415 - needed where requests are signed only

    digests = [hashlib.sha256(body).hexdigest()]
    if method == "GET" and not body:
        # Validators sign an empty JSON object there, and send nothing.
        digests.append(_EMPTY_OBJECT)
    try:
        key = Keypair(ss58_address=request.sender)
    except ValueError:
        raise NotSigned("Invalid Keypair. Epistula-Signed-By is no ss58 address.") from None
    try:
        right = any(key.verify((digest + request.rest).encode(), request.signature) for digest in digests)
    except ValueError:
        raise NotSigned("Invalid Signature Format. A signature is 64 bytes in hexadecimal digits.") from None
    if not right:
        raise NotSigned("Signature Mismatch. The signature is not one of this sender over this body.")


def _signature(headers: Mapping[str, str]) -> str:
    scheme, _, signature = headers.get("Authorization", "").partition(" ")
    signature = signature.strip()
    if scheme != SCHEME or not signature:
        raise NotSigned("Authorization header required: Epistula and the signature in hexadecimal digits.")
    if headers.get("Epistula-Signature", signature) != signature:
        raise NotSigned("Epistula-Signature and Authorization differ. Send the same signature in both, or no first.")
    return signature if signature.startswith("0x") else f"0x{signature}"
