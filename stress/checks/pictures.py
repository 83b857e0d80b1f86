"""What a check does with one picture: judge it, keep it for a person to look at, make it small for the report."""

import base64
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stress.checks.outcome import Fault, PictureFacts
from stress.image_validator import DEFAULT_SIDE, ImageValidator, ValidationResult
from stress.picture_faults import find_faults
from stress.picture_files import find_end_faults
from stress.pixels import READ_FORMATS, decode_bytes, is_decodable

THUMBNAIL_SIDE = 160
_THUMBNAIL_QUALITY = 70
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a picture is, and what is wrong with it: `fault` and `reason` are None for a good one."""

    facts: PictureFacts
    fault: Fault | None = None
    reason: str | None = None


def judge_picture(data: bytes, width: int | None, height: int | None) -> Judgement:
    """Check an encoded picture against the asked size in pixels (None: 1024). Blocks for the time of a decoding."""
    validator = ImageValidator.for_size(width or DEFAULT_SIDE, height or DEFAULT_SIDE, require_png=True)
    result = validator.validate_bytes(data)
    fault, reason = _fault_of(validator, result, data)
    return Judgement(_facts(data, result, reason), fault, reason)


def keep_picture(folder: Path, job_id: str, data: bytes) -> Path:
    """Write the picture as `{folder}/{job_id}.png`, or under a further number where that exists, and return its path.

    A service under test may name its jobs as it likes: an id that is no plain name is replaced by a hash of it.
    """
    name = job_id if _PLAIN_NAME.fullmatch(job_id) else hashlib.sha256(job_id.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{name}.png", 1
    while True:
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            number += 1
            path = folder / f"{name}.{number}.png"
        else:
            return path


def thumbnail(data: bytes) -> str | None:
    """Return the picture as a JPEG of at most 160 pixels a side, as a `data:` address; None if it cannot be read."""
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
            if not is_decodable(image.size):
                return None
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            image.convert("RGB").save(small, "JPEG", quality=_THUMBNAIL_QUALITY)
    except Exception:  # noqa: BLE001 - a decoder fed with a stranger's bytes raises anything
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"


def _fault_of(
    validator: ImageValidator, result: ValidationResult, data: bytes
) -> tuple[Fault, str] | tuple[None, None]:
    # What is missing, and from where on, says more than that the picture as a whole is too dark or too small.
    ends = find_end_faults(data)
    partial, where = validator.detect_partial_render_bytes(data)
    if partial and not ends:
        return Fault.PARTIAL_PICTURE, where or "Partial render detected"
    faults = ends or (find_faults(decode_bytes(data)) if result.dimensions and is_decodable(result.dimensions) else ())
    for fault in faults:
        return Fault.PARTIAL_PICTURE if fault.is_partial else Fault.INVALID_PICTURE, fault.sentence
    if not result.is_valid:
        return Fault.INVALID_PICTURE, result.reason or "The picture is invalid"
    return None, None


def _facts(data: bytes, result: ValidationResult, reason: str | None) -> PictureFacts:
    width, height = result.dimensions or (None, None)
    return PictureFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        width=width,
        height=height,
        variance=result.variance,
        blank_percentage=result.blank_percentage,
        valid=reason is None,
        reason=reason,
        thumbnail=thumbnail(data),
    )
