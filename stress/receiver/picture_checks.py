"""What the receiver says of a picture: whether it is whole and not blank, and a small version of it to show."""

import asyncio
import io
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from stress.image_validator import ImageValidator
from stress.pixels import is_decodable

THUMBNAIL_SIDE_PX = 256
MAX_REMEMBERED = 4_000
MAX_THUMBNAILS = 1_000

_GONE = "The picture is no longer kept"


class PictureCheck(BaseModel):
    """A picture of no expected size, judged by its own bytes. `number` counts checks, in the order they were made.

    `shown` says whether it is a PNG that can be decoded: only such pictures are served as pictures.
    """

    model_config = ConfigDict(frozen=True)

    number: int = 0
    sha256: str
    valid: bool
    shown: bool
    reason: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class _Judged:
    check: PictureCheck
    thumbnail: bytes | None


class PictureSource(Protocol):
    """Where the bytes of a picture are."""

    def picture(self, sha256: str) -> bytes | None:
        """Return a picture as it came, or None if it is not kept (any more)."""


class PictureChecks:
    """Checks pictures when somebody wants to see them, one at a time and off the event loop, each once.

    The latest 4,000 checks and 1,000 thumbnails (JPEG, 256 pixels at most) are remembered. For one event loop.
    """

    def __init__(self, source: PictureSource) -> None:
        self._source = source
        self._checks: OrderedDict[str, PictureCheck] = OrderedDict()
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()
        self._wanted: OrderedDict[str, None] = OrderedDict()
        self._working: asyncio.Task[None] | None = None
        self._last_number = 0
        self._under_way: dict[str, asyncio.Task[_Judged]] = {}
        # A thread of our own: whoever stops the receiver does not wait for it.
        self._judging = ThreadPoolExecutor(1, thread_name_prefix="picture-check")

    @property
    def last_number(self) -> int:
        """The number of the latest check; 0 before the first."""
        return self._last_number

    def after(self, number: int) -> tuple[PictureCheck, ...]:
        """Return the checks with a number above `number`, oldest first."""
        return tuple(check for check in self._checks.values() if check.number > number)

    def want(self, sha256: str) -> None:
        """Have a picture checked soon, the latest wanted first."""
        if sha256 in self._checks:
            return
        self._wanted[sha256] = None
        self._wanted.move_to_end(sha256)
        if len(self._wanted) > MAX_REMEMBERED:
            self._wanted.popitem(last=False)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def check(self, sha256: str) -> PictureCheck:
        """Return what is to be said of a picture, now."""
        return self._checks.get(sha256) or (await self._judge(sha256)).check

    async def thumbnail(self, sha256: str) -> bytes | None:
        """Return a small JPEG of a picture, or None for what is not shown."""
        if sha256 in self._thumbnails:
            return self._thumbnails[sha256]
        if sha256 in self._checks and not self._checks[sha256].shown:
            return None
        return (await self._judge(sha256)).thumbnail

    async def _work(self) -> None:
        while self._wanted:
            sha256, _ = self._wanted.popitem()
            if sha256 not in self._checks:
                await self._judge(sha256)

    async def _judge(self, sha256: str) -> _Judged:
        """Judge a picture once for all who ask meanwhile: decoded it may take hundreds of megabytes."""
        task = self._under_way.get(sha256)
        if task is None or task.done():
            task = self._under_way[sha256] = asyncio.create_task(self._judge_alone(sha256))
        return await asyncio.shield(task)

    async def _judge_alone(self, sha256: str) -> _Judged:
        try:
            judged = await asyncio.get_running_loop().run_in_executor(self._judging, self._read_and_judge, sha256)
        finally:
            self._under_way.pop(sha256, None)
        if judged.check.reason == _GONE:
            return judged
        self._last_number += 1
        self._checks[sha256] = judged.check.model_copy(update={"number": self._last_number})
        self._checks.move_to_end(sha256)
        if judged.thumbnail is not None:
            self._thumbnails[sha256] = judged.thumbnail
        for remembered, bound in ((self._checks, MAX_REMEMBERED), (self._thumbnails, MAX_THUMBNAILS)):
            while len(remembered) > bound:
                remembered.popitem(last=False)
        return judged

    def _read_and_judge(self, sha256: str) -> _Judged:
        data = self._source.picture(sha256)
        if data is None:
            return _not_shown(sha256, _GONE)
        return judge(sha256, data)


def judge(sha256: str, data: bytes) -> _Judged:
    """Check an encoded picture against what it says itself; whatever its bytes are, nothing is raised."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            if not is_decodable(image.size):
                return _not_shown(sha256, f"Too large to decode: {width}x{height}")
            thumbnail = _thumbnail(image)
    except UnidentifiedImageError:
        return _not_shown(sha256, "Not a PNG")
    except Exception as error:  # noqa: BLE001 - a decoder fed with a stranger's bytes raises anything
        return _not_shown(sha256, f"Cannot be decoded: {error}")
    validator = ImageValidator(width, height, 0, len(data), require_png=True, deep=True)
    result = validator.validate_bytes(data)
    # What was never drawn says more than that much of the picture is black.
    reason = next((fault.sentence for fault in result.faults if fault.is_partial), result.reason)
    check = PictureCheck(sha256=sha256, valid=reason is None, shown=True, reason=reason, width=width, height=height)
    return _Judged(check, thumbnail)


def _not_shown(sha256: str, reason: str) -> _Judged:
    return _Judged(PictureCheck(sha256=sha256, valid=False, shown=False, reason=reason), None)


def _thumbnail(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=82)
    return encoded.getvalue()
