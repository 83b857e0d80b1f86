"""Whose picture it is: the one that was asked for, another job's, an old one, or one with another's rows in it.

What is kept of a reference is a fingerprint of about 20 kB, so that hundreds of them stay in memory and one picture is
compared with all of them in milliseconds. Distances are mean absolute differences in 8-bit levels (0 to 255).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stress.errors import UnreadablePictureError
from stress.pixels import Pixels, decode_bytes

THUMBNAIL_SIDE = 64
"""Pixels per side of what distances are first taken on: enough for things of 2 % of the picture, and for its place."""
CLEARLY_NEARER = 0.25
"""A picture is another job's if its distance to that one is at most this part of the distance to its own."""
ROUNDING = 2.0
"""Distance that another order of sums, another batch size or another device may leave between equal requests."""
BAND_FACTOR = 4.0
"""One 64th of the rows may differ by so many times the tolerated mean: rounding is not spread evenly, but what another
job wrote there differs by more."""
ROW_FACTOR = 16.0
"""A single row may differ by so many times the tolerated mean: an edge that runs along the row moves by a fraction of
a pixel, while a row of another picture differs by tens of levels."""
MIN_COPIED_ROWS = 4
"""Copied rows that make a contamination: single plain rows can be equal by chance."""


class MatchKind(StrEnum):
    """Whose picture it is. The first two are what a service promises for its classes `exact` and `seeded`."""

    IDENTICAL = "identical"
    NEAR = "near"
    SWAPPED = "swapped"
    STALE = "stale"
    CONTAMINATED = "contaminated"
    CHANNELS_SWAPPED = "channels_swapped"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """There is no reference of its own to compare with, and it is nobody else's either."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Between two pictures of one size, in 8-bit levels: mean over all values, and the largest of one value."""

    mean: float
    max: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of a picture: hashes of the file, the pixels and each row, and a thumbnail of 64 x 64.

    `path` is where the picture lies, if it does; then distances that decide are taken on all its pixels.
    """

    sha256: str
    pixels_sha256: str
    size: tuple[int, int]
    rows: NDArray[np.uint64] = field(repr=False)
    thumbnail: Pixels = field(repr=False)
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """`other` is the key of the job whose picture or rows it has; `rows` are the first and last of those, included.

    `own_distance` is the mean distance to its own reference, `other_distance` that to `other`.
    """

    kind: MatchKind
    sentence: str
    other: str | None = None
    rows: tuple[int, int] | None = None
    own_distance: float | None = None
    other_distance: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether the picture is the one that was asked for, as far as that can be told."""
        return self.kind in {MatchKind.IDENTICAL, MatchKind.NEAR, MatchKind.UNKNOWN}


def distance(one: Pixels, other: Pixels) -> Distance:
    """Measure how far two pictures are apart.

    Raises:
        ValueError: they are of different sizes.
    """
    if one.shape != other.shape:
        raise ValueError(
            f"Pictures of {_size_of(one)} and {_size_of(other)} pixels have no distance; resize one first."
        )
    difference = np.where(one > other, one - other, other - one)
    return Distance(float(difference.mean()), int(difference.max(initial=0)))


def fingerprint(picture: bytes | Path) -> Fingerprint:
    """Take the fingerprint of an encoded picture, or of the file at a path, which is then read again when needed.

    Raises:
        UnreadablePictureError: it cannot be read or decoded, or is too large to be.
    """
    data, pixels = _read(picture)
    return _fingerprint(data, pixels, picture if isinstance(picture, Path) else None)


def identify(
    picture: bytes | Path,
    own: str,
    references: Mapping[str, Fingerprint],
    *,
    earlier: Mapping[str, Fingerprint] | None = None,
    tolerance: float = 0.0,
) -> Match:
    """Tell whose `picture` is that the job `own` got.

    `references` are the right pictures by job, its own among them; `earlier` is what was delivered before this job was
    submitted, by any key, its own id included where that was used before. `tolerance` is the mean distance up to which
    it may differ from its own reference: 0 for the class `exact`, `ROUNDING` for `seeded`. Equal pixels in other bytes
    count as identical; compare hashes for the bytes.

    Raises:
        UnreadablePictureError: the picture cannot be decoded.
    """
    data, pixels = _read(picture)
    found = _fingerprint(data, pixels, None)
    wanted, before = references.get(own), earlier or {}
    if wanted is not None and found.size == wanted.size and found.pixels_sha256 == wanted.pixels_sha256:
        return Match(MatchKind.IDENTICAL, "The picture is identical to its reference.", own_distance=0.0)
    others = _others(found, own, references, before)
    twin = others.with_pixels_of(found)
    if twin is not None:
        return _anothers(twin, own, before, "exactly", _apart(found, wanted), 0.0)
    if wanted is None:
        return Match(
            MatchKind.UNKNOWN, "The picture has no reference of its own, and is identical to none of the others."
        )
    if wanted.size != found.size:
        sizes = f"{found.size[0]}x{found.size[1]}, its reference {wanted.size[0]}x{wanted.size[1]}"
        return Match(MatchKind.WRONG, f"The picture is none of the references: it is {sizes} pixels large.")
    return _Case(found, pixels, own, wanted, others.unlike(wanted, tolerance), before, tolerance).match()


@dataclass(frozen=True, slots=True)
class _Others:
    """Everybody else's pictures of the same size, those delivered earlier first, with their thumbnails in one array."""

    names: tuple[str, ...]
    prints: tuple[Fingerprint, ...]
    thumbnails: NDArray[np.int16]

    @classmethod
    def of(cls, pictures: Sequence[tuple[str, Fingerprint]]) -> "_Others":
        shape = (-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
        stacked = np.array([one.thumbnail for _, one in pictures], dtype=np.int16).reshape(shape)
        return cls(tuple(name for name, _ in pictures), tuple(one for _, one in pictures), stacked)

    def with_pixels_of(self, found: Fingerprint) -> str | None:
        pairs = zip(self.names, self.prints, strict=True)
        return next((name for name, one in pairs if one.pixels_sha256 == found.pixels_sha256), None)

    def unlike(self, wanted: Fingerprint, tolerance: float) -> "_Others":
        """Those that can be told from `wanted` at all: what is within the tolerance was asked to be equal."""
        pairs = zip(self.names, self.prints, self.bands(wanted).mean(axis=1), strict=True)
        return _Others.of([(name, one) for name, one, apart in pairs if apart > tolerance])

    def bands(self, found: Fingerprint) -> NDArray[np.float64]:
        """Mean distance per picture and 64th of the rows."""
        return np.asarray(np.abs(self.thumbnails - found.thumbnail).mean(axis=(2, 3)), dtype=np.float64)


def _others(
    found: Fingerprint, own: str, references: Mapping[str, Fingerprint], before: Mapping[str, Fingerprint]
) -> _Others:
    pairs = [*before.items(), *((name, one) for name, one in references.items() if name != own)]
    return _Others.of([(name, one) for name, one in pairs if one.size == found.size])


@dataclass(frozen=True, slots=True)
class _Case:
    """A picture, whom it should be, and whom else it could be."""

    found: Fingerprint
    pixels: Pixels
    own: str
    wanted: Fingerprint
    others: _Others
    before: Mapping[str, Fingerprint]
    tolerance: float

    def match(self) -> Match:
        own_bands = _bands(self.found, self.wanted)
        apart, near = float(own_bands.mean()), max(self.tolerance, ROUNDING)
        bands = self.others.bands(self.found)
        means = bands.mean(axis=1)
        if len(means) and means.min() <= min(near, CLEARLY_NEARER * apart):
            nearest = int(np.argmin(means))
            how = f"nearly (distance {means[nearest]:.2f}; {apart:.2f} to its own reference)"
            return _anothers(self.others.names[nearest], self.own, self.before, how, apart, float(means[nearest]))
        copied = self._copied_rows() or _copied_bands(self.found.size[1], own_bands, bands, near)
        if copied is not None:
            return self._contaminated(*copied, apart)
        return self._compare_whole(own_bands)

    def _compare_whole(self, own_bands: NDArray[np.float64]) -> Match:
        if self.wanted.path is None:
            wanted, found, on = self.wanted.thumbnail, self.found.thumbnail, " on thumbnails"
        else:
            (_, wanted), found, on = _read(self.wanted.path), self.pixels, ""
        whole = distance(found, wanted)
        exchanged = distance(found[:, :, ::-1], wanted).mean
        if exchanged < whole.mean and exchanged <= min(max(self.tolerance, ROUNDING), CLEARLY_NEARER * whole.mean):
            sentence = "The picture is its reference with red and blue exchanged."
            return Match(MatchKind.CHANNELS_SWAPPED, sentence, own_distance=whole.mean)
        figures = f"by {whole.mean:.2f} levels on average and {whole.max} at most{on} (limit {self.tolerance:g})"
        # Where nothing is tolerated, a thumbnail that is equal proves nothing.
        is_near = 0.0 < self.tolerance >= whole.mean and own_bands.max() <= BAND_FACTOR * self.tolerance
        by_row = _row_distances(found, wanted)
        if is_near and by_row.max() > ROW_FACTOR * self.tolerance:
            sentence = (
                f"Row {by_row.argmax()} of the picture differs from its reference by {by_row.max():.1f} levels on "
                f"average (limit {ROW_FACTOR * self.tolerance:g}), the picture {figures}."
            )
            return Match(MatchKind.WRONG, sentence, own_distance=whole.mean)
        if is_near:
            return Match(MatchKind.NEAR, f"The picture differs from its reference {figures}.", own_distance=whole.mean)
        rows = np.flatnonzero(self.found.rows != self.wanted.rows)
        where = f"in {len(rows)} of {len(self.found.rows)} rows, from {rows[0]} to {rows[-1]}"
        sentence = f"The picture is none of the references: it differs from its own {figures}, {where}."
        return Match(MatchKind.WRONG, sentence, own_distance=whole.mean)

    def _copied_rows(self) -> tuple[int, NDArray[np.intp]] | None:
        """Which other picture has most of the rows that are not the reference's, exactly, and which rows."""
        foreign = self.found.rows != self.wanted.rows
        copies = [np.flatnonzero(foreign & (self.found.rows == other.rows)) for other in self.others.prints]
        index = max(range(len(copies)), key=lambda at: len(copies[at]), default=None)
        return None if index is None or len(copies[index]) < MIN_COPIED_ROWS else (index, copies[index])

    def _contaminated(self, index: int, rows: NDArray[np.intp], apart: float) -> Match:
        name, first, last = self.others.names[index], int(rows[0]), int(rows[-1])
        whose = f"the job {name}"
        if name in self.before:
            whose = "an earlier picture of the same id" if name == self.own else f"the earlier picture {name}"
        part = len(rows) / self.found.size[1] * 100
        what = f"{len(rows)} rows ({part:.1f}% of the height), from {first} to {last}"
        sentence = f"{what}, are not those of its reference but those of {whose}."
        return Match(MatchKind.CONTAMINATED, sentence, name, (first, last), own_distance=apart)


def _anothers(
    name: str, own: str, before: Mapping[str, Fingerprint], how: str, apart: float | None, other: float
) -> Match:
    if name not in before:
        kind, whose = MatchKind.SWAPPED, f"that of another job, {name}"
    elif name == own:
        kind, whose = MatchKind.STALE, "an earlier one of the same id"
    else:
        kind, whose = MatchKind.STALE, f"an earlier one, {name}"
    sentence = f"The picture is {how} {whose}."
    return Match(kind, sentence, name, own_distance=apart, other_distance=other)


def _copied_bands(
    height: int, own: NDArray[np.float64], others: NDArray[np.float64], near: float
) -> tuple[int, NDArray[np.intp]] | None:
    """Do as `_copied_rows` for rows that were drawn with other rounding than the reference, in 64ths of the height."""
    copied = (own > BAND_FACTOR * near) & (others <= near) & (others <= CLEARLY_NEARER * own)
    if not copied.any():
        return None
    index = int(np.argmax(copied.sum(axis=1)))
    rows = np.arange(height)
    return index, rows[copied[index][rows * THUMBNAIL_SIDE // height]]


def _row_distances(one: Pixels, other: Pixels) -> NDArray[np.float64]:
    """Mean distance per row."""
    difference = np.where(one > other, one - other, other - one)
    return np.asarray(difference.mean(axis=(1, 2)), dtype=np.float64)


def _bands(one: Fingerprint, other: Fingerprint) -> NDArray[np.float64]:
    return np.asarray(np.abs(one.thumbnail.astype(np.int16) - other.thumbnail).mean(axis=(1, 2)), dtype=np.float64)


def _apart(found: Fingerprint, wanted: Fingerprint | None) -> float | None:
    return None if wanted is None or wanted.size != found.size else float(_bands(found, wanted).mean())


def _read(picture: bytes | Path) -> tuple[bytes, Pixels]:
    name = str(picture) if isinstance(picture, Path) else "the picture"
    try:
        data = picture.read_bytes() if isinstance(picture, Path) else picture
        return data, decode_bytes(data)
    except Exception as error:  # a decoder fed with a stranger's bytes raises anything
        raise UnreadablePictureError(name, str(error)) from error


def _fingerprint(data: bytes, pixels: Pixels, path: Path | None) -> Fingerprint:
    height, width = pixels.shape[:2]
    box = Image.Resampling.BOX
    small = np.asarray(Image.fromarray(pixels).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), box))
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in pixels)
    return Fingerprint(
        sha256=hashlib.sha256(data).hexdigest(),
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        size=(width, height),
        rows=np.frombuffer(digests, np.uint64),
        thumbnail=small,
        path=path,
    )


def _size_of(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
