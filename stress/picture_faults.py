"""Faults of a picture that show without knowing what it should be: tails that were never drawn, and repeated parts.

Each limit is a compromise with honest pictures and says so. What looks like a fault and may be meant so (a bar
along one edge only, a wallpaper of exactly two tiles, a computed pattern that fills a part of the picture) is reported;
compare with a reference to be sure.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stress.pixels import DARK_BELOW, Pixels

MIN_TAIL_ROWS = 4
MIN_TAIL = 0.02
"""A tail or a copy of less than this part of the height is not looked for: single rows repeat by chance, and encoders
and resizing leave a few odd rows at an edge."""

FLAT_RANGE = 3
"""Levels by which a channel may vary in a flat tail. Rounding and colour conversion move a constant by one or two;
painted, photographed and decoded surfaces vary by ten and more along one row."""
FLAT_STEP = 12
"""Levels by which something within `STEP_ROWS` rows above a flat tail differs from it. A gradient that fades out moves
by less; a picture that was cut off ends at once."""
STEP_ROWS = 8
LOSSY_ROWS = 16
"""Side of the largest block of JPEG and WebP: so far a picture leaks into the tail below it when they encode it."""
GROUND_SHARE = 0.25
"""A tail that continues a ground of its colour is the ground's lower margin: so much of the rows just above has exactly
the tail's values (a thing on pure white or pure black). Mottled ground has by chance at most a tenth. A real white tail
below such a ground is therefore missed."""
FRAME_HEIGHTS = (0.8, 1.25)
"""A bar of the same colour at the top whose height is in this ratio to the tail's makes both a frame."""
GREY_SPREAD = 6
"""Levels between the channels of what is called grey."""
WHITE_FROM = 246

NOISE_ROW_CORRELATION = 0.3
"""Rows of noise correlate less than this with themselves moved by a pixel: four standard errors at 64 RGB pixels."""
NOISE_CORRELATION = 0.15
"""Correlation of neighbouring pixels, across and down, below which a whole tail is noise. Decoders, lenses and resizing
correlate even gravel and grass by 0.3 and more; memory that was never written does not."""
NOISE_DEVIATION = 20.0
"""Standard deviation in levels from which on noise is a fault: grain and dithering stay below 10, random bytes reach
74."""
NOISE_ROWS = 0.9
"""Part of the tail's rows that must be noise on their own."""
SMOOTH_CORRELATION = 0.5
"""What the rest of the picture must reach, or the picture as a whole is noise and has no tail."""

INFORMATIVE_CHANGES = 16
"""Changes along a row from which on it says something when it repeats. Plain bands and a pole on a plain ground
have fewer; a row of a painted surface has tens to hundreds."""
PATTERN_SHARE = 0.2
"""If more than this part of the other rows repeats at the same distance, the picture is a pattern: stripes, a board, or
a small picture made large."""
PATTERN_TIMES = 3
"""A picture that consists of one tile so many times or more is a pattern; twice is a half that was copied."""
HALF = 0.45

_CHUNK_ROWS = 128


class PictureFaultKind(StrEnum):
    """What can be wrong with a picture on its own, by the name that reports use."""

    BLACK_TAIL = "black_tail"
    GREY_TAIL = "grey_tail"
    WHITE_TAIL = "white_tail"
    FLAT_TAIL = "flat_tail"
    NOISE_TAIL = "noise_tail"
    REPEATED_ROWS = "repeated_rows"
    REPEATED_COLUMNS = "repeated_columns"
    FROZEN_HALF = "frozen_half"
    TRUNCATED_FILE = "truncated_file"
    TRAILING_BYTES = "trailing_bytes"


@dataclass(frozen=True, slots=True)
class PictureFault:
    """One fault; `sentence` has the measured figure and the limit.

    `first` and `last` are the rows concerned (columns for REPEATED_COLUMNS and a frozen left or right half), counted
    from 0 at the top left and both included; None for faults of the file.
    """

    kind: PictureFaultKind
    sentence: str
    first: int | None = None
    last: int | None = None

    @property
    def is_partial(self) -> bool:
        """Whether a part of the picture is missing or was never drawn."""
        return self.kind is not PictureFaultKind.TRAILING_BYTES


def find_faults(pixels: Pixels, *, lossy: bool = False) -> tuple[PictureFault, ...]:
    """Look for every fault that pixels alone can show, tails first; empty for a picture without one.

    `lossy` says that they come from JPEG or WebP, where edges are soft; copies are then not exact and not found.
    Swapped channels, stale and exchanged pictures need a reference: see `stress.picture_comparison`.
    """
    if not pixels.size:
        return ()
    found = (
        find_flat_tail(pixels, lossy=lossy),
        find_noise_tail(pixels),
        find_repetition(pixels, "rows"),
        find_repetition(pixels, "columns"),
    )
    return tuple(fault for fault in found if fault is not None)


def find_flat_tail(pixels: Pixels, *, lossy: bool = False) -> PictureFault | None:
    """Find bottom rows of one colour below a picture that does not fade into it and is not a thing on that ground."""
    height = len(pixels)
    bottom = pixels[-_least(height) :].reshape(-1, 3)
    if (np.ptp(bottom, axis=0) > FLAT_RANGE).any():
        return None
    lowest = np.minimum.accumulate(pixels.min(axis=1)[::-1])
    highest = np.maximum.accumulate(pixels.max(axis=1)[::-1])
    flat = ((highest.astype(np.int16) - lowest) <= FLAT_RANGE).all(axis=1)
    rows = height if flat.all() else int(np.argmin(flat))
    # A picture that is flat throughout has no tail: its variance says what it is.
    if rows < _least(height) or rows == height:
        return None
    low, high = lowest[rows - 1].astype(np.int16), highest[rows - 1].astype(np.int16)
    # What is near an upper edge is still the picture, however soft the edge.
    end = max(height - rows - (LOSSY_ROWS if lossy else 0), 1)
    above = pixels[max(0, end - STEP_ROWS) : end].astype(np.int16)
    step = int(np.maximum(above - low, high - above).max())
    ground = float(((above >= low) & (above <= high)).all(axis=2).mean())
    if step < FLAT_STEP or ground > GROUND_SHARE or _is_banded(above) or _is_framed(pixels, rows, low, high):
        return None
    kind, name = _colour_of_tail(low, high)
    colour = ", ".join(str(int(value)) for value in (low + high) // 2)
    varies = int((high - low).max())
    return PictureFault(
        kind,
        f"{name} tail: the bottom {_part(rows, height)} of the rows ({rows} of {height}) are one colour, RGB {colour}, "
        f"varying by {varies} levels (up to {FLAT_RANGE} is flat; limit {MIN_TAIL:.0%} of the rows)",
        height - rows,
        height - 1,
    )


def find_noise_tail(pixels: Pixels) -> PictureFault | None:
    """Find bottom rows of white noise below a picture whose neighbouring pixels resemble each other."""
    height = len(pixels)
    if pixels.shape[1] < 2:
        return None
    # Most pictures end here: the whole is only measured where the lowest rows are noise.
    if not _noisy(_neighbour_sums(pixels[-_least(height) :]), pixels.shape[1]).any():
        return None
    sums = _neighbour_sums(pixels)
    noisy = _noisy(sums, pixels.shape[1])
    share = np.cumsum(noisy[::-1]) / np.arange(1, height + 1)
    ends = np.flatnonzero((share >= NOISE_ROWS) & noisy[::-1])
    rows = int(ends[-1]) + 1 if len(ends) else 0
    if rows < _least(height) or height - rows < MIN_TAIL_ROWS:
        return None
    tail, rest = sums[height - rows :].sum(axis=0), sums[: height - rows].sum(axis=0)
    # The tail's first row is compared with what is above it, which is not noise: one row in many.
    correlation = float(max(abs(tail[1]), abs(tail[2])) / tail[0])
    smooth = 1.0 if not rest[0] else float(rest[1] / rest[0])
    if correlation >= NOISE_CORRELATION or smooth < SMOOTH_CORRELATION:
        return None
    return PictureFault(
        PictureFaultKind.NOISE_TAIL,
        f"Noise tail: in the bottom {_part(rows, height)} of the rows ({rows} of {height}) neighbours correlate "
        f"by {correlation:.2f} (below {NOISE_CORRELATION} is noise), above them by {smooth:.2f}",
        height - rows,
        height - 1,
    )


def find_repetition(pixels: Pixels, axis: Literal["rows", "columns"]) -> PictureFault | None:
    """Find a block of rows (or columns) that is an exact copy of one before it or of the ones before it.

    Only exact copies count, as smooth pictures have neighbouring rows that are nearly equal; so copies are found in
    what was encoded without loss. Rows that hardly change along their length are not looked at, and neither are
    pictures that are patterns throughout.
    """
    lines = pixels if axis == "rows" else np.ascontiguousarray(pixels.transpose(1, 0, 2))
    found = _longest_copy(lines)
    if found is None:
        return None
    first, count, distance = found
    last, length, name = first + count - 1, len(lines), axis.removesuffix("s")
    half = _half_name(axis, first, count, distance, length)
    kind = PictureFaultKind.REPEATED_ROWS if axis == "rows" else PictureFaultKind.REPEATED_COLUMNS
    what = f"Repeated {axis}: {axis} {first} to {last}"
    if half is not None:
        kind, what = PictureFaultKind.FROZEN_HALF, f"Frozen half: the {half} half ({axis} {first} to {last})"
    source = f"{name} {first - 1}" if distance == 1 else f"{axis} {first - distance} to {last - distance}"
    copy = "copies" if distance == 1 else "a copy"
    verb = "is" if half is not None else "are"
    side = "height" if axis == "rows" else "width"
    return PictureFault(
        kind,
        f"{what}, {_part(count, length)} of the {side}, {verb} {copy} of {source} (limit {MIN_TAIL:.0%})",
        first,
        last,
    )


def _least(length: int) -> int:
    return max(MIN_TAIL_ROWS, math.ceil(length * MIN_TAIL))


def _part(count: int, length: int) -> str:
    return f"{count / length * 100:.1f}%"


def _is_banded(above: NDArray[np.int16]) -> bool:
    """Whether the rows above are one colour each: then the tail is one of the stripes, or where a gradient ends."""
    ranges = (above.max(axis=1) - above.min(axis=1)).max(axis=1)
    return float(np.median(ranges)) <= FLAT_RANGE


def _is_framed(pixels: Pixels, rows: int, low: NDArray[np.int16], high: NDArray[np.int16]) -> bool:
    same = ((pixels >= low) & (pixels <= high)).all(axis=(1, 2))
    bar = len(pixels) if same.all() else int(np.argmin(same))
    return FRAME_HEIGHTS[0] <= bar / rows <= FRAME_HEIGHTS[1]


def _colour_of_tail(low: NDArray[np.int16], high: NDArray[np.int16]) -> tuple[PictureFaultKind, str]:
    if high.max() < DARK_BELOW:
        return PictureFaultKind.BLACK_TAIL, "Black"
    if low.min() >= WHITE_FROM:
        return PictureFaultKind.WHITE_TAIL, "White"
    if high.max() - low.min() <= GREY_SPREAD:
        return PictureFaultKind.GREY_TAIL, "Grey"
    return PictureFaultKind.FLAT_TAIL, "Flat"


def _noisy(sums: NDArray[np.float64], width: int) -> NDArray[np.bool_]:
    """Which rows are noise on their own."""
    energy, across = sums[:, 0], sums[:, 1]
    deviation = np.sqrt(energy / (width * 3))
    return np.asarray((deviation >= NOISE_DEVIATION) & (across < NOISE_ROW_CORRELATION * energy))


def _neighbour_sums(pixels: Pixels) -> NDArray[np.float64]:
    """Per row, about the mean of row and channel: sum of squares, of products with the pixel to the right, and of
    products with the pixel above; shape (rows, 3).
    """
    sums = np.zeros((len(pixels), 3))
    # In blocks, as the numbers take four times the room of the picture.
    for start in range(0, len(pixels), _CHUNK_ROWS):
        block = pixels[max(0, start - 1) : start + _CHUNK_ROWS].astype(np.float32)
        block -= block.mean(axis=1, keepdims=True)
        # The row before the block is there for the products downwards.
        own = block if start == 0 else block[1:]
        rows = slice(start, start + len(own))
        sums[rows, 0] = np.einsum("ijk,ijk->i", own, own)
        sums[rows, 1] = np.einsum("ijk,ijk->i", own[:, 1:], own[:, :-1])
        sums[max(start, 1) : rows.stop, 2] = np.einsum("ijk,ijk->i", block[1:], block[:-1])
    return sums


def _longest_copy(lines: Pixels) -> tuple[int, int, int] | None:
    """First line, number of lines and distance to the original of the copy with most informative lines."""
    length = len(lines)
    # Python's hash of bytes has 64 bits and a secret key: equal ones are equal lines.
    keys = np.fromiter((hash(line.tobytes()) for line in lines), np.int64, length)
    if len(np.unique(keys)) > length - _least(length):
        return None
    informative = (lines[:, 1:] != lines[:, :-1]).any(axis=2).sum(axis=1) >= INFORMATIVE_CHANGES
    best, most = (0, 0, 0), _least(length) - 1
    for distance in range(1, length - _least(length) + 1):
        equal = keys[distance:] == keys[:-distance]
        if np.count_nonzero(equal & informative[distance:]) <= most:
            continue
        first, count, says = _best_run(equal, informative[distance:])
        if says > most:
            best, most = (first + distance, count, distance), says
    if not best[1] or _is_pattern(keys, informative, best):
        return None
    return best


def _best_run(equal: NDArray[np.bool_], informative: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Start and length of the run of equal lines that has most informative ones, and how many it has."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], equal, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    counted = np.concatenate(([0], np.cumsum(informative)))
    says = counted[ends] - counted[starts]
    best = int(np.argmax(says))
    return int(starts[best]), int(ends[best] - starts[best]), int(says[best])


def _is_pattern(keys: NDArray[np.int64], informative: NDArray[np.bool_], copy: tuple[int, int, int]) -> bool:
    first, count, distance = copy
    if count == len(keys) - distance:
        return distance * PATTERN_TIMES <= len(keys)
    others = informative[distance:].copy()
    others[first - distance : first - distance + count] = False
    if not others.any():
        return False
    repeats = (keys[distance:] == keys[:-distance]) & others
    return bool(np.count_nonzero(repeats) > PATTERN_SHARE * np.count_nonzero(others))


def _half_name(axis: Literal["rows", "columns"], first: int, count: int, distance: int, length: int) -> str | None:
    names = ("top", "bottom") if axis == "rows" else ("left", "right")
    if count < HALF * length or not (abs(distance * 2 - length) <= 1 or (axis == "columns" and distance == 1)):
        return None
    return names[0] if first + count <= length * (1 - HALF) else names[1]
