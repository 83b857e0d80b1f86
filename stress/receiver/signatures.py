"""Signatures of callbacks: Standard Webhooks 1.0.0 over the raw bytes of the body.

Signed is `{webhook-id}.{webhook-timestamp}.{body}`, with HMAC-SHA256 (`v1`, secrets `whsec_` + base64) or with
ed25519 (`v1a`, public keys `whpk_` + base64); `webhook-signature` lists `{scheme},{base64}`, divided by spaces.
Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from stress.errors import BackgroundServerError

TOLERANCE_S = 300.0
"""How far `webhook-timestamp` may be from the receiver's clock, either way."""

_SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix of secrets
_PUBLIC_KEY_PREFIX = "whpk_"
_SECRET_BYTES = range(24, 65)

_Check: TypeAlias = Callable[[bytes, bytes], bool]


class SignatureVerdict(StrEnum):
    """What became of a callback's signature. STALE is a right one whose moment is too far from now."""

    NOT_CHECKED = "not checked"
    RIGHT = "right"
    WRONG = "wrong"
    MISSING = "missing"
    STALE = "stale"

    @property
    def is_refusal(self) -> bool:
        """Whether a receiver that checks must not trust such a callback."""
        return self not in {SignatureVerdict.NOT_CHECKED, SignatureVerdict.RIGHT}


@dataclass(frozen=True, slots=True)
class SignedHeaders:
    """The three headers of Standard Webhooks, as they came."""

    webhook_id: str | None
    timestamp: str | None
    signature: str | None


class SignatureVerifier:
    """Checks signatures with an HMAC `signing_secret`, an ed25519 `public_key`, both, or (nothing given) not at all.

    Raises:
        ValueError: a key is not of the standard's form.
        BackgroundServerError: a public key was given, and the package `cryptography` is not installed.
    """

    def __init__(
        self,
        signing_secret: str | None = None,
        public_key: str | None = None,
        *,
        tolerance_s: float = TOLERANCE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._checks: dict[str, _Check] = {}
        if signing_secret:
            self._checks["v1"] = _hmac_check(_key_bytes(signing_secret, _SECRET_PREFIX, "signing secret"))
        if public_key:
            self._checks["v1a"] = _ed25519_check(_key_bytes(public_key, _PUBLIC_KEY_PREFIX, "public key"))
        self._tolerance_s = tolerance_s
        self._clock = clock

    @property
    def checks(self) -> bool:
        """Whether a key was given."""
        return bool(self._checks)

    def verdict(self, headers: SignedHeaders, body: bytes) -> SignatureVerdict:
        """Judge a callback by its headers and the bytes of its body.

        Of each scheme with a key that the callback is signed with, one signature must be right (a sender that
        changes its key sends two); schemes without a key are passed over.
        """
        if not self._checks:
            return SignatureVerdict.NOT_CHECKED
        signatures = _by_scheme(headers.signature or "")
        schemes = [scheme for scheme in self._checks if scheme in signatures]
        if not schemes or not headers.webhook_id or not headers.timestamp:
            return SignatureVerdict.MISSING
        content = f"{headers.webhook_id}.{headers.timestamp}.".encode() + body
        for scheme in schemes:
            if not any(self._checks[scheme](signature, content) for signature in signatures[scheme]):
                return SignatureVerdict.WRONG
        return SignatureVerdict.RIGHT if self._is_fresh(headers.timestamp) else SignatureVerdict.STALE

    def _is_fresh(self, timestamp: str) -> bool:
        if not (timestamp.isascii() and timestamp.isdigit()):
            return False
        return abs(self._clock() - int(timestamp)) <= self._tolerance_s


def _by_scheme(header: str) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for item in header.split():
        scheme, _, encoded = item.partition(",")
        # What is no base64 stays as a signature that cannot be right: a garbled one is wrong, not missing.
        found.setdefault(scheme, []).append(_decoded(encoded) or b"")
    return found


def _key_bytes(key: str, prefix: str, what: str) -> bytes:
    material = _decoded(key.removeprefix(prefix)) if key.startswith(prefix) else None
    if material is None:
        raise ValueError(f"The {what} is not of the form {prefix}<base64>. Copy it whole, as the service shows it.")
    if prefix == _SECRET_PREFIX and len(material) not in _SECRET_BYTES:
        raise ValueError(
            f"The {what} has {len(material)} bytes, and Standard Webhooks wants 24 to 64. Copy it whole, as registered."
        )
    return material


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def _hmac_check(secret: bytes) -> _Check:
    return lambda signature, content: hmac.compare_digest(hmac.digest(secret, content, "sha256"), signature)


def _ed25519_check(public_key: bytes) -> _Check:
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - needed with a public key only
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    except ImportError as error:
        raise BackgroundServerError(
            "Checking ed25519 signatures needs the package `cryptography`. Install it (pip install cryptography)."
        ) from error
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise ValueError(
            f"The public key is no ed25519 key ({error}). Copy it whole, as the service shows it."
        ) from error

    def check(signature: bytes, content: bytes) -> bool:
        try:
            key.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    return check
