"""Signatures of callbacks: Standard Webhooks 1.0.0 over the raw bytes of the body.

Signed is `{webhook-id}.{webhook-timestamp}.{body}`: with the service's own ed25519 key (`v1a`; receivers check with the
public key), and, for a client that has registered a signing secret, with HMAC-SHA256 of it as well (`v1`).
Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hmac

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from callback.schema import signing_key

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix of secrets
_PRIVATE_PREFIX = "whsk_"
_PUBLIC_PREFIX = "whpk_"
_SECRET_BYTES = range(24, 65)


class Signer:
    """Signs with one ed25519 key, given as `whsk_` + base64."""

    def __init__(self, private_key: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(private_key.removeprefix(_PRIVATE_PREFIX)))

    @property
    def public_key(self) -> str:
        """What receivers check with: `whpk_` + base64."""
        return _PUBLIC_PREFIX + _text(self._key.public_key().public_bytes_raw())

    def sign(self, webhook_id: str, timestamp: int, body: bytes, secret: str | None = None) -> str:
        """Return the value of `webhook-signature`. It takes some milliseconds a megabyte."""
        content = f"{webhook_id}.{timestamp}.".encode() + body
        signatures = [f"v1a,{_text(self._key.sign(content))}"]
        if secret is not None:
            signatures.append(f"v1,{_text(hmac.digest(secret_bytes(secret), content, 'sha256'))}")
        return " ".join(signatures)


def new_private_key() -> str:
    """Make a key to sign with."""
    return _PRIVATE_PREFIX + _text(Ed25519PrivateKey.generate().private_bytes_raw())


def obtain_private_key(tx: sa.Connection, now: float) -> str:
    """Return the service's private key; the first time, make it. It lies in the store, where every tracker finds it."""
    found: str | None = tx.execute(sa.select(signing_key.c.private_key)).scalar_one_or_none()
    if found is None:
        found = new_private_key()
        tx.execute(sa.insert(signing_key).values(id=1, private_key=found, made_at=now))
    return found


def secret_bytes(secret: str) -> bytes:
    """Return the key that a signing secret stands for. Raises ValueError, with a sentence that does not repeat it."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise ValueError("a signing secret is whsec_ and 24 to 64 bytes in base64")
    return key


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
