"""A picture as numbers: how encoded bytes become 8-bit RGB values, and which are too many to try."""

import io
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A pixel is dark if each of its three 8-bit values is below this.
DARK_BELOW = 10
# A small file can hold a huge picture, so what is beyond this is not decoded (services render 2048x2048 at most).
MAX_DECODED_PIXELS = 64 * 1024 * 1024

READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded: Pillow by itself would hand a stranger's PostScript to Ghostscript."""

Pixels: TypeAlias = NDArray[np.uint8]
"""8-bit RGB values, shape (height, width, 3)."""


def is_decodable(size: tuple[int, int]) -> bool:
    """Tell whether a picture of `size` (width, height) is small enough to decode."""
    return size[0] * size[1] <= MAX_DECODED_PIXELS


def decode(image: Image.Image) -> Pixels:
    """Decode an opened picture; alpha is dropped. Raises what Pillow raises for a broken one."""
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def decode_bytes(data: bytes) -> Pixels:
    """Decode an encoded picture; alpha is dropped.

    Raises:
        ValueError: it has more than `MAX_DECODED_PIXELS` pixels.
        Exception: whatever Pillow raises for bytes that are no whole picture.
    """
    with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
        if not is_decodable(image.size):
            raise ValueError(f"{image.size[0]}x{image.size[1]} is too large to decode")
        return decode(image)
