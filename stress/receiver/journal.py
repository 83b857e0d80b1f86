"""The records of a receiver on disk: JSON lines, so that one that is killed loses at most the last."""

import fcntl
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from stress.errors import BackgroundServerError
from stress.receiver.entries import CallbackEntry, Refusal
from stress.receiver.pictures import plain_name

JOURNAL_NAME = "callbacks.jsonl"

_logger = logging.getLogger(__name__)


class _Line(BaseModel):
    """One line: a callback or a refusal."""

    model_config = ConfigDict(frozen=True)

    callback: CallbackEntry | None = None
    refusal: Refusal | None = None

    @field_validator("callback")
    @classmethod
    def _of_a_plain_name(cls, callback: CallbackEntry | None) -> CallbackEntry | None:
        # The id names a file; whoever wrote the line, it must not name one elsewhere.
        if callback is not None:
            plain_name(callback.job_id)
        return callback


class Journal:
    """`{root}/callbacks.jsonl`, held by one receiver at a time and readable by its owner only: it has secrets in it.

    A line is handed to the operating system before the callback is answered; it is not synced to the disk, so a
    crash of the whole machine may lose more.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / JOURNAL_NAME
        self._lines = 0
        self._file = _locked(self._path)

    @property
    def lines(self) -> int:
        """How many lines the journal has."""
        return self._lines

    def read(self) -> tuple[tuple[CallbackEntry, ...], tuple[Refusal, ...]]:
        """Return every record in order. A last line that is not whole is cut off, an unreadable one is left out."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        lines = [line for raw in content[:whole].splitlines() if (line := _parsed(raw)) is not None]
        self._lines = len(lines)
        return (
            tuple(line.callback for line in lines if line.callback is not None),
            tuple(line.refusal for line in lines if line.refusal is not None),
        )

    def add(self, record: CallbackEntry | Refusal) -> None:
        """Append a record. A disk that is full costs the record of it, not the callback: it is logged."""
        try:
            self._file.write(_encoded(record))
        except OSError as error:
            _logger.warning("A callback could not be written to %s (%s). Free some space.", self._path, error)
        else:
            self._lines += 1

    def rewrite(self, records: Iterable[CallbackEntry | Refusal]) -> None:
        """Put these records in place of all that was there, in one step."""
        part = self._path.with_suffix(".part")
        part.unlink(missing_ok=True)
        file = _locked(part)
        encoded = [_encoded(record) for record in records]
        file.write(b"".join(encoded))
        part.replace(self._path)
        self._file.close()
        self._file = file
        self._lines = len(encoded)

    def close(self) -> None:
        """Let another receiver have the folder."""
        self._file.close()


def _locked(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BackgroundServerError(
                f"{path.parent} is in use by another receiver. Stop that one, or choose another folder."
            ) from error
        # The file may have been replaced between opening and locking; then the lock is on a name that is gone.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _encoded(record: CallbackEntry | Refusal) -> bytes:
    line = _Line(refusal=record) if isinstance(record, Refusal) else _Line(callback=record)
    return line.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _parsed(raw: bytes) -> _Line | None:
    try:
        return _Line.model_validate_json(raw)
    except ValidationError as error:
        _logger.warning("A line of a receiver's journal is passed over: %s.", error.errors()[0]["msg"])
        return None
