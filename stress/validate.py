"""Validates files, folders and bytes, and tells what came of it in a table, as JSON and as an exit code."""

import hashlib
import io
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from rich.table import Table
from rich.text import Text

from stress.image_validator import DEFAULT_SIDE, ImageValidator, ValidationResult
from stress.pixels import READ_FORMATS

PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What is looked at in a folder; a file that is named itself is judged whatever its name."""
STANDARD_INPUT = "-"
MAX_READ_BYTES = ImageValidator.for_size(8192, 8192).max_file_size
"""What is read into memory at most where any size will do: larger pictures are not decoded anyhow."""

EXIT_VALID, EXIT_INVALID, EXIT_NOTHING_TO_CHECK = 0, 1, 2


@dataclass(frozen=True)
class FileVerdict:
    """What was found about one picture.

    `same_as` names the other pictures of the call with the same bytes: possibly one was delivered in place of another.
    That is a warning; it makes none of them invalid.
    """

    name: str
    result: ValidationResult
    sha256: str | None = None
    same_as: tuple[str, ...] = ()
    is_missing: bool = False
    """Whether there is nothing of this name."""

    @property
    def is_valid(self) -> bool:
        """Whether every check passed."""
        return self.result.is_valid


@dataclass(frozen=True)
class _Limits:
    width: int | None
    height: int | None
    any_size: bool
    require_png: bool
    deep: bool

    def validator(self, data: bytes) -> ImageValidator:
        """The validator with the bounds for the asked size, or with `any_size` for the one that the picture says."""
        width, height = self.width or DEFAULT_SIDE, self.height or DEFAULT_SIDE
        if self.any_size:
            width, height = _size_of(data) or (width, height)
        return ImageValidator.for_size(width, height, require_png=self.require_png, deep=self.deep)

    def most_bytes(self) -> int:
        """How much of a file is worth reading."""
        return MAX_READ_BYTES if self.any_size else self.validator(b"").max_file_size


def validate_paths(
    paths: Iterable[Path | str | bytes],
    *,
    recursive: bool = True,
    width: int | None = None,
    height: int | None = None,
    any_size: bool = False,
    require_png: bool = False,
    deep: bool = True,
    standard_input: BinaryIO | None = None,
) -> tuple[FileVerdict, ...]:
    """Validate files, every picture in folders, encoded bytes, and `-` for standard input.

    The asked size is `width` x `height` pixels, each 1024 unless given. Bounds of the file's size are 100 kB and 10 MB
    for 1024 x 1024; for other sizes the lower one is in proportion to the area, and the upper one for larger pictures.
    With `any_size` every picture is measured by the bounds for its own size. A file that several paths lead to is
    judged once. Nothing is raised for what cannot be read: its verdict says why.

    Raises:
        ValueError: `any_size` together with a width or a height.
    """
    if any_size and (width is not None or height is not None):
        raise ValueError("Ask for a size or for any size, not for both.")
    limits = _Limits(width, height, any_size, require_png, deep)
    verdicts = []
    seen: set[Path] = set()
    for number, path in enumerate(paths, start=1):
        if isinstance(path, bytes):
            verdicts.append(_verdict(f"bytes {number}", path, limits))
        elif str(path) == STANDARD_INPUT:
            data = (standard_input or sys.stdin.buffer).read(limits.most_bytes() + 1)
            verdicts.append(_verdict("standard input", data, limits))
        else:
            for file in _files(Path(path), recursive=recursive):
                target = _target(file)
                if target not in seen:
                    seen.add(target)
                    verdicts.append(_file(file, limits))
    return _with_twins(verdicts)


def exit_code(verdicts: Iterable[FileVerdict]) -> int:
    """Return 0 if all are valid, 1 if a picture is invalid, 2 if there is none to check or only a path is missing."""
    judged = tuple(verdicts)
    if any(not verdict.is_valid and not verdict.is_missing for verdict in judged):
        return EXIT_INVALID
    if not judged or any(verdict.is_missing for verdict in judged):
        return EXIT_NOTHING_TO_CHECK
    return EXIT_VALID


def to_json(verdicts: tuple[FileVerdict, ...]) -> str:
    """Return the verdicts as a JSON list of objects with the fields of `FileVerdict`."""
    return _JSON.dump_json(verdicts, indent=2).decode()


def to_table(verdicts: tuple[FileVerdict, ...]) -> Table:
    """Return a table for `rich` with a line for each picture; names and reasons are never read as markup."""
    table = Table(title="Pictures", caption=summary(verdicts), caption_justify="left")
    for heading in ("Picture", "Verdict", "Size", "Bytes", "Blank", "Variance", "Remarks"):
        table.add_column(heading, justify="right" if heading in {"Bytes", "Blank", "Variance"} else "left")
    for verdict in verdicts:
        result = verdict.result
        table.add_row(
            Text(_shown(verdict.name), overflow="fold"),
            Text("valid", "green") if verdict.is_valid else Text("INVALID", "bold red"),
            "" if result.dimensions is None else f"{result.dimensions[0]}x{result.dimensions[1]}",
            "" if result.file_size is None else f"{result.file_size:,}",
            "" if result.blank_percentage is None else f"{result.blank_percentage:.1%}",
            "" if result.variance is None else f"{result.variance:.1f}",
            _remarks(verdict),
        )
    return table


def summary(verdicts: tuple[FileVerdict, ...]) -> str:
    """Return one sentence with the counts."""
    invalid = sum(not verdict.is_valid for verdict in verdicts)
    same = sum(bool(verdict.same_as) for verdict in verdicts)
    warning = f"; {same} have the same bytes as another, which may be stale or swapped pictures" if same else ""
    return f"{len(verdicts)} checked, {len(verdicts) - invalid} valid, {invalid} invalid{warning}."


_JSON = TypeAdapter(tuple[FileVerdict, ...])


def _remarks(verdict: FileVerdict) -> Text:
    remarks = Text(_shown(verdict.result.reason or ""))
    for fault in verdict.result.faults:
        if fault.sentence != verdict.result.reason:
            remarks.append(f"{'; ' if remarks else ''}{_shown(fault.sentence)}")
    if verdict.same_as:
        names = ", ".join(_shown(name) for name in verdict.same_as)
        remarks.append(f"{'; ' if remarks else ''}Same bytes as {names}", "yellow")
    return remarks


def _shown(text: str) -> str:
    """The text without what could steer a terminal: a file's name is a stranger's word."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _files(path: Path, *, recursive: bool) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        pictures = (Path(folder) / name for name in sorted(names) if not name.startswith("."))
        # A pipe among the files would block; one that is named itself is meant to be read.
        yield from (file for file in pictures if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())


def _target(path: Path) -> Path:
    """Where links lead; a link that leads nowhere is itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _file(path: Path, limits: _Limits) -> FileVerdict:
    name = _text(path)
    try:
        if not path.exists():
            return FileVerdict(name, ValidationResult(False, f"File does not exist: {name}"), is_missing=True)
        most = limits.most_bytes()
        if path.stat().st_size > most:
            return FileVerdict(name, limits.validator(b"").validate(path))
        with path.open("rb") as file:
            return _verdict(name, file.read(most + 1), limits)
    except OSError as error:
        return FileVerdict(name, ValidationResult(False, _text(f"Image analysis failed: {error}")))


def _verdict(name: str, data: bytes, limits: _Limits) -> FileVerdict:
    result = limits.validator(data).validate_bytes(data)
    return FileVerdict(name, result, hashlib.sha256(data).hexdigest())


def _text(words: Path | str) -> str:
    """What can be written as JSON: the name of a file may hold bytes that are no text."""
    return os.fsencode(words).decode(errors="replace")


def _size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height as the picture's header says, None for what is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
            return image.size
    except Exception:  # noqa: BLE001 - a decoder fed with a stranger's bytes raises anything
        return None


def _with_twins(verdicts: Iterable[FileVerdict]) -> tuple[FileVerdict, ...]:
    judged = tuple(verdicts)
    names = defaultdict[str, list[str]](list)
    for verdict in judged:
        if verdict.sha256 is not None:
            names[verdict.sha256].append(verdict.name)
    return tuple(
        replace(verdict, same_as=tuple(name for name in names[verdict.sha256] if name != verdict.name))
        if verdict.sha256 is not None
        else verdict
        for verdict in judged
    )
