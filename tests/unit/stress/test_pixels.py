import io

import numpy as np
import pytest
from PIL import Image

from stress.pixels import decode_bytes


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_picture_becomes_three_8_bit_channels(mode: str) -> None:
    pixels = decode_bytes(encode(Image.new(mode, (5, 3))))

    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8


def test_alpha_is_dropped_without_blending() -> None:
    picture = Image.new("RGBA", (2, 2), (10, 20, 30, 0))

    assert decode_bytes(encode(picture))[0, 0].tolist() == [10, 20, 30]


def test_too_many_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stress.pixels.MAX_DECODED_PIXELS", 99)

    with pytest.raises(ValueError, match="10x10 is too large to decode"):
        decode_bytes(encode(Image.new("RGB", (10, 10))))
