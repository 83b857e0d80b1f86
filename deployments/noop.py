"""The engine kind `noop`: every prompt gives the same picture, at once, so that only Darkroom itself is measured.

Publication, hashing and verification stay as they are with a real model.
"""

from functools import lru_cache

import numpy as np

from deployments.job import RenderJob
from deployments.pictures import EncodedPicture
from deployments.png import encode_png

PNG_BYTES = 100_000
"""Size that the picture is made for, in bytes; reached from 192x192 pixels on, smaller pictures have what fits."""


class NoopRenderer:
    """Returns one constant PNG per size in pixels."""

    @property
    def device(self) -> str:
        """See `Renderer`."""
        return "noop"

    def load(self) -> None:
        """See `Renderer`; there is nothing to load."""

    def render(self, job: RenderJob) -> EncodedPicture:
        """See `Renderer`; reports no progress, because there is none."""
        return EncodedPicture(constant_png(job.request.width, job.request.height))

    def recover(self, error: Exception) -> None:
        """See `Renderer`; there is nothing to recover."""


@lru_cache(maxsize=32)
def constant_png(width: int, height: int) -> bytes:
    """Return a PNG of `width` x `height` pixels: noise that does not compress up to `PNG_BYTES`, then grey."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, min(PNG_BYTES, pixels.size), np.uint8)
    pixels.reshape(-1)[: noise.size] = noise
    return encode_png(pixels)
