"""Checks of a picture: whole, of the asked size, and neither black nor blank.

Dark scenes are reported as blank. A deep check also looks for what `stress.picture_faults` and `stress.picture_files`
know; another job's picture is only noticed by `stress.picture_comparison`. Alpha is ignored.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from stress.picture_faults import PictureFault, PictureFaultKind, find_faults
from stress.picture_files import find_end_faults, find_file_faults
from stress.pixels import DARK_BELOW, READ_FORMATS, Pixels, decode, decode_bytes, is_decodable

# A picture is partial if more than this fraction of its bottom rows is dark throughout.
PARTIAL_DARK_ROWS = 0.8
# Formats whose edges are soft, by Pillow's name for them.
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP"})
# Part of the height, from the bottom, in which those rows are counted.
DEFAULT_PARTIAL = 0.3
DEFAULT_SIDE = 1024
MIN_FILE_SIZE = 100_000
MAX_FILE_SIZE = 10_000_000
"""In bytes, for a photo-like picture of 1024x1024."""


@dataclass(frozen=True)
class ValidationResult:
    """What was found; a check that failed leaves what later checks would have measured at None.

    `file_size` is in bytes, `dimensions` is (width, height) in pixels, `blank_percentage` is a fraction
    between 0 and 1 like the limit it is compared with, `variance` is that of all 8-bit RGB values. `faults` is what a
    deep check found, whether or not an earlier check has given the reason already.
    """

    is_valid: bool
    reason: str | None = None
    file_size: int | None = None
    dimensions: tuple[int, int] | None = None
    blank_percentage: float | None = None
    variance: float | None = None
    faults: tuple[PictureFault, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether a deep check found that a part of the picture is missing or was never drawn."""
        return any(fault.is_partial for fault in self.faults)


class ImageValidator:
    """Applies the checks in a fixed order; the first that fails gives the reason.

    Sizes are in pixels, file sizes in bytes, `max_blank_percentage` is a fraction between 0 and 1. The
    defaults suit photo-like 1024x1024 pictures; `for_size` has bounds for others. Any format that Pillow reads passes
    unless `require_png`. `deep` adds, after all others, the checks for parts that were never drawn or are missing.
    """

    def __init__(
        self,
        expected_width: int = DEFAULT_SIDE,
        expected_height: int = DEFAULT_SIDE,
        min_file_size: int = MIN_FILE_SIZE,
        max_file_size: int = MAX_FILE_SIZE,
        max_blank_percentage: float = 0.5,
        min_variance: float = 100.0,
        *,
        require_png: bool = False,
        deep: bool = False,
    ) -> None:
        self.expected_width = expected_width
        self.expected_height = expected_height
        self.min_file_size = min_file_size
        self.max_file_size = max_file_size
        self.max_blank_percentage = max_blank_percentage
        self.min_variance = min_variance
        self.require_png = require_png
        self.deep = deep

    @classmethod
    def for_size(cls, width: int, height: int, *, require_png: bool = False, deep: bool = False) -> Self:
        """Make one for pictures of this size: the lower bound of the file's size is in proportion to the area, the
        upper one too for more than 1024x1024.
        """
        scale = width * height / DEFAULT_SIDE**2
        return cls(
            width,
            height,
            min_file_size=int(MIN_FILE_SIZE * scale),
            max_file_size=int(MAX_FILE_SIZE * max(scale, 1.0)),
            require_png=require_png,
            deep=deep,
        )

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
        fault = self._size_fault(len(data))
        if fault is not None:
            # Why a file is too small is worth knowing; what is too large may not even have been read to its end.
            faults = find_end_faults(data) if self.deep and len(data) < self.min_file_size else ()
            return ValidationResult(False, fault, len(data), faults=faults)
        fault = self._format_fault(data)
        if fault is not None:
            return ValidationResult(False, fault, len(data), faults=self._file_faults(data))
        try:
            return self._check_pixels(data)
        except Exception as error:  # noqa: BLE001 - a decoder fed with a stranger's bytes raises anything
            reason = f"Image analysis failed: {error}"
            return ValidationResult(False, reason, len(data), faults=self._file_faults(data))

    def detect_partial_render(self, path: Path | str, threshold: float = DEFAULT_PARTIAL) -> tuple[bool, str | None]:
        """Tell whether the bottom `threshold` (a fraction of the height) is black, and say so in words.

        An unreadable file is not partial: (False, "Could not analyze: ...").
        """
        try:
            return _detect_partial(decode_bytes(Path(path).read_bytes()), threshold)
        except Exception as error:  # noqa: BLE001 - as in `validate_bytes`
            return False, f"Could not analyze: {error}"

    def detect_partial_render_bytes(self, data: bytes, threshold: float = DEFAULT_PARTIAL) -> tuple[bool, str | None]:
        """Do as `detect_partial_render` for an encoded picture in memory."""
        try:
            return _detect_partial(decode_bytes(data), threshold)
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
            with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
                image.verify()
                found = image.format
        except Exception as error:  # noqa: BLE001 - as in `validate_bytes`
            return f"PIL verification failed: {error}"
        if self.require_png and found != "PNG":
            return f"Format mismatch: expected PNG, got {found}"
        return None

    def _check_pixels(self, data: bytes) -> ValidationResult:
        # A picture cannot be used after `verify`, so it is opened again.
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
            size, lossy = image.size, image.format in LOSSY_FORMATS
            expected = (self.expected_width, self.expected_height)
            pixels = decode(image) if size == expected or is_decodable(size) else None
        if pixels is None or size != expected:
            fault = f"Dimension mismatch: expected {expected[0]}x{expected[1]}, got {size[0]}x{size[1]}"
            return ValidationResult(False, fault, len(data), size)
        blank = float((pixels < DARK_BELOW).all(axis=2).mean())
        variance = float(pixels.var(dtype=np.float64))
        faults = _deep_faults(data, pixels, lossy=lossy) if self.deep else ()
        reason = self._blank_fault(blank) or self._variance_fault(variance)
        if reason is None and faults:
            reason = faults[0].sentence
        return ValidationResult(reason is None, reason, len(data), size, blank, variance, faults)

    def _file_faults(self, data: bytes) -> tuple[PictureFault, ...]:
        return find_file_faults(data) if self.deep else ()

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


def _deep_faults(data: bytes, pixels: Pixels, *, lossy: bool) -> tuple[PictureFault, ...]:
    found = find_faults(pixels, lossy=lossy)
    partial, sentence = _detect_partial(pixels, DEFAULT_PARTIAL)
    if partial and sentence and not any(fault.kind is PictureFaultKind.BLACK_TAIL for fault in found):
        found = (PictureFault(PictureFaultKind.BLACK_TAIL, sentence), *found)
    return (*found, *find_end_faults(data))


def _detect_partial(pixels: Pixels, threshold: float) -> tuple[bool, str | None]:
    first_row = int(pixels.shape[0] * (1 - threshold))
    bottom = pixels[max(first_row, 0) :]
    if not len(bottom):
        return False, None
    dark = float((bottom < DARK_BELOW).all(axis=(1, 2)).mean())
    if dark <= PARTIAL_DARK_ROWS:
        return False, None
    return True, f"Partial render detected: {dark * 100:.1f}% of bottom rows are blank"
