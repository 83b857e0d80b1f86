"""How far pictures are apart."""

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.device.results import Distance

Pixels = NDArray[np.uint8]

NO_DISTANCE = Distance(0.0, 0)


def decode(png_bytes: bytes) -> Pixels:
    """Return the pixels of a PNG, of shape (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png_bytes)).convert("RGB"))


def distance(first: Pixels, second: Pixels) -> Distance:
    """Return how far two pictures of the same size are apart. Raises ValueError if the sizes differ."""
    if first.shape != second.shape:
        raise ValueError(f"Pictures of {first.shape} and {second.shape} cannot be compared.")
    levels = np.abs(first.astype(np.int16) - second.astype(np.int16))
    return Distance(float(levels.mean()), int(levels.max()))


def worst(distances: Iterable[Distance]) -> Distance:
    """Return the largest mean and the largest maximum of all."""
    found = [NO_DISTANCE, *distances]
    return Distance(max(one.mean_levels for one in found), max(one.max_levels for one in found))
