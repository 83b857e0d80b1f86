"""Requests signed as validators sign theirs, written from the description of the format and not from our code."""

import hashlib
import time
from uuid import uuid4

from bittensor_wallet import Keypair


def signed(
    sender: Keypair,
    receiver: str,
    body: bytes = b"",
    *,
    uuid: str | None = None,
    milliseconds: int | None = None,
    digest_of: bytes | None = None,
) -> dict[str, str]:
    """Return the headers of a request; `digest_of` is what is hashed, if that is not the body."""
    uuid = uuid or str(uuid4())
    timestamp = str(round(time.time() * 1000) if milliseconds is None else milliseconds)
    digest = hashlib.sha256(body if digest_of is None else digest_of).hexdigest()
    signature = "0x" + sender.sign(f"{digest}.{uuid}.{timestamp}.{receiver}".encode()).hex()
    return {
        "Authorization": f"Epistula {signature}",
        "Epistula-Timestamp": timestamp,
        "Epistula-UUID": uuid,
        "Epistula-Signed-By": str(sender.ss58_address),
        "Epistula-Signed-For": receiver,
    }
