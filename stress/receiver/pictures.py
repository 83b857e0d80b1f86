"""Where a receiver keeps the pictures it was sent."""

import hashlib
import os
import re
import shutil
import threading
from collections import Counter
from contextlib import suppress
from filecmp import cmp
from pathlib import Path
from uuid import uuid4

MAX_NAME_BYTES = 200

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\.[0-9a-f]{32}\.part")


def plain_name(job_id: str) -> str:
    """Return `job_id` if it can name a file inside a folder and nothing else.

    Raises:
        ValueError: it is a path, holds a character that cannot be shown, or is too long for a file name.
    """
    if job_id in {".", ".."} or "/" in job_id or "\\" in job_id or not job_id.isprintable():
        raise ValueError("a job id must be a plain name: no path and no control characters")
    if len(job_id.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a job id must not be longer than {MAX_NAME_BYTES} bytes")
    return job_id


class PictureFolder:
    """`{root}/images/{job_id}.png`, a job's latest picture, and `{root}/received/{sha256}`, every one as it came.

    Both are written whole or not at all, and are one file with two names where the file system can do that.
    They stay for as long as a record holds them. Usable from any thread.

    A picture that arrives twice takes its place once; where the file system has no second names, twice.
    """

    def __init__(self, root: Path) -> None:
        self._by_job = root / "images"
        self._by_hash = root / "received"
        self._lock = threading.Lock()
        self._held: Counter[tuple[str, str]] = Counter()
        self._held_hashes: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What the pictures that are held take, each counted once."""
        with self._lock:
            return self._held_bytes

    def save(self, job_id: str, picture: bytes) -> tuple[Path, str]:
        """Write the job's picture in place of an earlier one, and hold it; return its path and its SHA-256 in hex."""
        sha256 = hashlib.sha256(picture).hexdigest()
        path = self._path(job_id)
        received = self._by_hash / sha256
        with self._lock:
            for folder in (self._by_job, self._by_hash):
                folder.mkdir(parents=True, exist_ok=True)
            if not received.exists():
                part = _part_in(self._by_hash)
                part.write_bytes(picture)
                part.replace(received)
            _give_name(received, path)
            self._hold(job_id, sha256)
        return path, sha256

    def hold(self, job_id: str, sha256: str) -> None:
        """Hold a picture that is there already for one more record."""
        with self._lock:
            self._hold(job_id, sha256)

    def release(self, job_id: str, sha256: str) -> None:
        """Hold the picture for one record less, and remove it with the last.

        Under the job's name another picture, and a file that somebody else has put there, stays.
        """
        if not _SHA256.fullmatch(sha256):
            return
        with self._lock:
            self._held[job_id, sha256] -= 1
            self._held_hashes[sha256] -= 1
            received = self._by_hash / sha256
            if self._held[job_id, sha256] <= 0:
                del self._held[job_id, sha256]
                _remove_same(self._path(job_id), received)
            if self._held_hashes[sha256] <= 0:
                del self._held_hashes[sha256]
                self._held_bytes -= self._sizes.pop(sha256, 0)
                received.unlink(missing_ok=True)

    def read(self, sha256: str) -> bytes | None:
        """Return a picture as it came, or None if it is not kept (any more)."""
        if not _SHA256.fullmatch(sha256):
            return None
        try:
            return (self._by_hash / sha256).read_bytes()
        except OSError:
            return None

    def sweep(self) -> None:
        """Remove what a receiver that was killed had half written."""
        for folder in (self._by_job, self._by_hash):
            for path in folder.glob(".*.part"):
                if _PART.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _path(self, job_id: str) -> Path:
        return self._by_job / f"{plain_name(job_id)}.png"

    def _hold(self, job_id: str, sha256: str) -> None:
        self._held[job_id, sha256] += 1
        self._held_hashes[sha256] += 1
        if sha256 not in self._sizes and _SHA256.fullmatch(sha256):
            with suppress(OSError):
                self._sizes[sha256] = (self._by_hash / sha256).stat().st_size
                self._held_bytes += self._sizes[sha256]


def _part_in(folder: Path) -> Path:
    return folder / f".{uuid4().hex}.part"


def _give_name(file: Path, path: Path) -> None:
    part = _part_in(path.parent)
    try:
        os.link(file, part)
    except OSError:
        shutil.copyfile(file, part)
    part.replace(path)
    # Renaming one name of a file to another name of the same file leaves both.
    part.unlink(missing_ok=True)


def _remove_same(path: Path, file: Path) -> None:
    with suppress(OSError):
        if path.samefile(file) or cmp(path, file, shallow=False):
            path.unlink()
