"""Checks of a picture: whole, of the asked size, and neither black nor blank.

Dark scenes are reported as blank, and a grey tail or another job's picture is not noticed; compare with a
reference where that matters. Alpha is ignored.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A pixel is dark if each of its three 8-bit values is below this.
DARK_BELOW = 10
# A picture is partial if more than this fraction of its bottom rows is dark throughout.
PARTIAL_DARK_ROWS = 0.8
# A small file can hold a huge picture, so what is beyond this is not decoded (services render 2048x2048 at most).
MAX_DECODED_PIXELS = 64 * 1024 * 1024

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class ValidationResult:
    """What was found; a check that failed leaves what later checks would have measured at None.

    `file_size` is in bytes, `dimensions` is (width, height) in pixels, `blank_percentage` is a fraction
    between 0 and 1 like the limit it is compared with, `variance` is that of all 8-bit RGB values.
    """

    is_valid: bool
    reason: str | None = None
    file_size: int | None = None
    dimensions: tuple[int, int] | None = None
    blank_percentage: float | None = None
    variance: float | None = None


class ImageValidator:
    """Applies the checks in a fixed order; the first that fails gives the reason.

    Sizes are in pixels, file sizes in bytes, `max_blank_percentage` is a fraction between 0 and 1. The
    defaults suit photo-like 1024x1024 pictures. Any format that Pillow reads passes unless `require_png`.
    """

    def __init__(
        self,
        expected_width: int = 1024,
        expected_height: int = 1024,
        min_file_size: int = 100_000,
        max_file_size: int = 10_000_000,
        max_blank_percentage: float = 0.5,
        min_variance: float = 100.0,
        *,
        require_png: bool = False,
    ) -> None:
        self.expected_width = expected_width
        self.expected_height = expected_height
        self.min_file_size = min_file_size
        self.max_file_size = max_file_size
        self.max_blank_percentage = max_blank_percentage
        self.min_variance = min_variance
        self.require_png = require_png

    def validate(self, path: Path | str) -> ValidationResult:
        """Check the file at `path`. What cannot be read is invalid; nothing is raised."""
        path = Path(path)
        if not path.exists():
            return ValidationResult(False, f"File does not exist: {path}")
        try:
            size = path.stat().st_size
            fault = self._size_fault(size)
            if fault is not None:
                return ValidationResult(False, fault, size)
            with path.open("rb") as file:
                # The file may still grow: one byte beyond the limit is enough to refuse it.
                data = file.read(self.max_file_size + 1)
        except OSError as error:
            return ValidationResult(False, f"Image analysis failed: {error}")
        return self.validate_bytes(data)

    def validate_bytes(self, data: bytes) -> ValidationResult:
        """Check an encoded picture in memory. What cannot be read is invalid; nothing is raised."""
        fault = self._size_fault(len(data)) or self._format_fault(data)
        if fault is not None:
            return ValidationResult(False, fault, len(data))
        try:
            return self._check_pixels(data)
        except Exception as error:  # noqa: BLE001 - a decoder fed with a stranger's bytes raises anything
            return ValidationResult(False, f"Image analysis failed: {error}", len(data))

    def detect_partial_render(self, path: Path | str, threshold: float = 0.3) -> tuple[bool, str | None]:
        """Tell whether the bottom `threshold` (a fraction of the height) is black, and say so in words.

        An unreadable file is not partial: (False, "Could not analyze: ...").
        """
        try:
            return self._detect_partial(Path(path).read_bytes(), threshold)
        except Exception as error:  # noqa: BLE001 - as in `validate_bytes`
            return False, f"Could not analyze: {error}"

    def detect_partial_render_bytes(self, data: bytes, threshold: float = 0.3) -> tuple[bool, str | None]:
        """Do as `detect_partial_render` for an encoded picture in memory."""
        try:
            return self._detect_partial(data, threshold)
        except Exception as error:  # noqa: BLE001 - as in `validate_bytes`
            return False, f"Could not analyze: {error}"

    def _size_fault(self, size: int) -> str | None:
        if size < self.min_file_size:
            return f"File too small ({size} bytes, expected >{self.min_file_size})"
        if size > self.max_file_size:
            return f"File too large ({size} bytes, expected <{self.max_file_size})"
        return None

    def _format_fault(self, data: bytes) -> str | None:
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
                found = image.format
        except Exception as error:  # noqa: BLE001 - as in `validate_bytes`
            return f"PIL verification failed: {error}"
        if self.require_png and found != "PNG":
            return f"Format mismatch: expected PNG, got {found}"
        return None

    def _check_pixels(self, data: bytes) -> ValidationResult:
        # A picture cannot be used after `verify`, so it is opened again.
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            expected = (self.expected_width, self.expected_height)
            pixels = _decode(image) if size == expected or _is_decodable(size) else None
        if pixels is None or size != expected:
            fault = f"Dimension mismatch: expected {expected[0]}x{expected[1]}, got {size[0]}x{size[1]}"
            return ValidationResult(False, fault, len(data), size)
        blank = float((pixels < DARK_BELOW).all(axis=2).mean())
        variance = float(pixels.var(dtype=np.float64))
        fault_found = self._blank_fault(blank) or self._variance_fault(variance)
        return ValidationResult(fault_found is None, fault_found, len(data), size, blank, variance)

    def _blank_fault(self, blank: float) -> str | None:
        if blank <= self.max_blank_percentage:
            return None
        limit = self.max_blank_percentage * 100
        return f"Image has {blank * 100:.1f}% blank/black pixels (threshold: {limit:.1f}%)"

    def _variance_fault(self, variance: float) -> str | None:
        if variance >= self.min_variance:
            return None
        limits = f"({variance:.1f}, threshold: {self.min_variance})"
        return f"Image variance too low {limits}, may be solid color or corrupted"

    def _detect_partial(self, data: bytes, threshold: float) -> tuple[bool, str | None]:
        with Image.open(io.BytesIO(data)) as image:
            if not _is_decodable(image.size):
                raise ValueError(f"{image.size[0]}x{image.size[1]} is too large to decode")
            pixels = _decode(image)
        first_row = int(pixels.shape[0] * (1 - threshold))
        bottom = pixels[max(first_row, 0) :]
        if not len(bottom):
            return False, None
        dark = float((bottom < DARK_BELOW).all(axis=(1, 2)).mean())
        if dark <= PARTIAL_DARK_ROWS:
            return False, None
        return True, f"Partial render detected: {dark * 100:.1f}% of bottom rows are blank"


def _is_decodable(size: tuple[int, int]) -> bool:
    return size[0] * size[1] <= MAX_DECODED_PIXELS


def _decode(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
