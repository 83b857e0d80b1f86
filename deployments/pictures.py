"""Pictures that need no device: pixels or a PNG that already lie in host memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.png import encode_png


@dataclass(frozen=True, slots=True)
class PixelPicture:
    """Pixels in host memory, uint8 of shape (height, width, 3)."""

    pixels: NDArray[np.uint8]
    compress_level: int = 1

    def wait(self) -> None:
        """Return at once: the pixels are here."""

    def png(self) -> bytes:
        """Return the encoded pixels."""
        return encode_png(self.pixels, self.compress_level)


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture that is already a PNG."""

    data: bytes

    def wait(self) -> None:
        """Return at once: the bytes are here."""

    def png(self) -> bytes:
        """Return the bytes."""
        return self.data
