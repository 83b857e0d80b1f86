import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stress.picture_faults import PictureFaultKind
from stress.picture_files import find_end_faults, find_file_faults
from stress.pixels import Pixels

SIDE = 64


def noise() -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encode(image_format: str, pixels: Pixels | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise() if pixels is None else pixels).save(buffer, image_format)
    return buffer.getvalue()


def png_with_rows(rows: int) -> bytes:
    """A PNG whose chunks are in order, but whose compressed data ends after so many rows."""
    whole = encode("PNG")
    raw = b"".join(b"\0" + row.tobytes() for row in noise()[:rows])
    return whole[:33] + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_whole_file_has_no_fault(image_format: str) -> None:
    assert find_file_faults(encode(image_format)) == ()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_a_whole_png_of_any_kind_has_no_fault(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (33, 21)).save(buffer, "PNG")

    assert find_file_faults(buffer.getvalue()) == ()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (encode("PNG")[:-12], "Truncated file: a PNG without its IEND chunk"),
        (encode("PNG")[:-30], "Truncated file: its chunk 'IDAT' lacks 18 bytes"),
        (png_with_rows(40), "Truncated file: it holds 40 of its 64 rows"),
        (encode("JPEG")[:-2], "Truncated file: a JPEG without its end marker"),
        (encode("WEBP")[:-100], "Truncated file: it has "),
        (encode("GIF")[:-100], "Truncated file: image file is truncated"),
        (encode("BMP")[:-100], "Truncated file: image file is truncated"),
    ],
    ids=["no IEND", "cut in a chunk", "rows missing", "JPEG", "WebP", "GIF", "BMP"],
)
def test_a_file_that_ends_early_is_truncated(data: bytes, sentence: str) -> None:
    (fault,) = find_file_faults(data)

    assert fault.kind is PictureFaultKind.TRUNCATED_FILE
    assert fault.sentence.startswith(sentence)
    assert fault.is_partial


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_bytes_after_the_end_are_found(image_format: str) -> None:
    data = encode(image_format)

    (fault,) = find_file_faults(data + b"more")

    assert fault.kind is PictureFaultKind.TRAILING_BYTES
    assert f"ends after {len(data)} bytes, the file after {len(data) + 4}" in fault.sentence
    assert not fault.is_partial


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + _chunk(b"IEND", b"")])
def test_what_is_no_picture_is_not_called_truncated(data: bytes) -> None:
    assert find_file_faults(data) == ()


def test_damaged_data_is_left_to_the_decoder() -> None:
    data = encode("PNG")[:33] + _chunk(b"IDAT", b"not compressed") + _chunk(b"IEND", b"")

    assert find_end_faults(data) == ()


def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked_to_the_end() -> None:
    bomb = _chunk(b"IDAT", zlib.compress(bytes(200_000_000), level=1))
    data = encode("PNG")[:33] + bomb + _chunk(b"IEND", b"")

    assert find_end_faults(data) == ()
