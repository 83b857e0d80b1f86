"""PNG: encoding of pixels, and a look at the frame of encoded bytes.

Source of the format: PNG specification, third edition (W3C), sections 5.2 (signature) and 11.2 (IHDR, IEND).
"""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END_CHUNK = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_IHDR_END = 33  # signature (8), then length, type, 13 bytes of data and checksum of IHDR (25)

# Pillow would load its file formats with the first picture that is saved, which then takes a tenth of a second longer.
Image.preinit()


def encode_png(pixels: NDArray[np.uint8], compress_level: int = 1) -> bytes:
    """Return the PNG of `pixels`, uint8 of shape (height, width, 3). The same pixels give the same bytes.

    `compress_level` is zlib's 0...9; 1 costs a fifth of the time of the default 6 for a few percent more bytes.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels if `data` begins and ends like a whole PNG, else None."""
    whole = len(data) > _IHDR_END and data.startswith(SIGNATURE) and data.endswith(_END_CHUNK)
    if not whole or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return int(width), int(height)
