"""Callbacks as a service sends them, and pictures to send."""

import base64
import hmac
import io
import time
from collections.abc import Callable, Mapping

import httpx
import numpy as np
from PIL import Image

from stress.callback_server import CallbackServer

FIELDS = {"job_id": "job-1", "status": "completed", "completed_at": "2030-01-01T00:00:00+00:00"}
HMAC_KEY = bytes(range(32))
SIGNING_SECRET = "whsec_" + base64.b64encode(HMAC_KEY).decode()


def png(seed: int = 0, side_px: int = 64, black_from: float = 1.0) -> bytes:
    """A smooth picture with some grain, black from this part of its height on."""
    across, down = np.meshgrid(np.arange(side_px), np.arange(side_px))
    waves = [np.sin(across / 9 + seed), np.cos(down / 11 + 2 * seed), np.sin((across + down) / 17 + 3 * seed)]
    grain = np.random.default_rng(seed).normal(0, 6, (side_px, side_px, 3))
    pixels = np.clip(128 + 100 * np.stack(waves, axis=-1) + grain, 12, 255).astype(np.uint8)
    pixels[int(side_px * black_from) :] = 0
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def request(
    url: str, *, picture: bytes | None = None, headers: Mapping[str, str] | None = None, **fields: str
) -> httpx.Request:
    """A whole multipart callback, its body read."""
    parts: list[tuple[str, tuple[str | None, bytes]]] = [
        (name, (None, value.encode())) for name, value in {**FIELDS, **fields}.items()
    ]
    if picture is not None:
        parts.append(("image", ("x.png", picture)))
    made = httpx.Request("POST", url, files=parts, headers=headers)
    made.read()
    return made


def send(made: httpx.Request) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.send(made)


def post(
    server: CallbackServer,
    *,
    picture: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    **fields: str,
) -> httpx.Response:
    return send(request(server.callback_url, picture=picture, headers=headers, **fields))


def signed(made: httpx.Request, *, key: bytes = HMAC_KEY, moment: float | None = None) -> httpx.Request:
    """Sign as Standard Webhooks says, with HMAC."""
    timestamp = str(int(time.time() if moment is None else moment))
    content = f"msg_1.{timestamp}.".encode() + made.content
    signature = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    made.headers.update({"webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}"})
    return made


def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for what another thread or process does without telling."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
