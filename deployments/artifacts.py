"""Publication of pictures: visible whole or not at all, and checked whenever they are read.

A key contains the attempt (`ab/<job key>-<attempt>.png`), so two attempts never write to one name.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deployments.errors import ArtifactCorrupt, ArtifactMissing, ArtifactUnwritable, InvalidArtifactKey
from deployments.png import png_size
from deployments.render import ArtifactRef
from observability.logs import get_logger

_log = get_logger("artifacts")

# A leading dot is refused: it keeps out "..", and temporary names (which begin with one) are never a key.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_MAX_DEPTH = 8
_TEMPORARY_SUFFIX = ".tmp"
_CREATE_TRIALS = 5


@dataclass(frozen=True, slots=True)
class ArtifactStore:
    """A folder of published pictures: a local path, or any fsspec URL such as `s3://bucket/prefix`.

    Picklable, opens nothing before it is used, and safe to use from several threads. All methods block: asynchronous
    callers run them in a thread.
    """

    root: str

    @property
    def is_local(self) -> bool:
        """Whether the pictures lie on this machine's own file system (and so are lost to other nodes)."""
        return "://" not in self.root or self.root.startswith(("file://", "local://"))

    def publish(self, key: str, png_bytes: bytes, width: int, height: int) -> ArtifactRef:
        """Make `png_bytes`, a PNG of `width` x `height` pixels, visible under `key`, durably; return its reference.

        The bytes are read back and compared before anyone can see them (object stores: before this returns). Publishing
        the same key again replaces it as a whole. Raises ArtifactUnwritable, and leaves nothing behind then;
        InvalidArtifactKey.
        """
        _check_key(key)
        ref = ArtifactRef(key, hashlib.sha256(png_bytes).hexdigest(), len(png_bytes), width, height)
        if (seen := png_size(png_bytes)) != (width, height):
            raise ArtifactUnwritable(f"The picture was not published: {_pixel_fault(seen, ref)}.")
        try:
            if self.is_local:
                _publish_file(self._folder, key, png_bytes, ref)
            else:
                self._publish_object(key, png_bytes, ref)
        except OSError as error:
            _log.exception("publishing %s failed", key)
            raise ArtifactUnwritable(f"The picture could not be stored: {_reason(error)}.") from error
        return ref

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the PNG bytes of `ref`, after comparing size, SHA-256 and pixels with it.

        Raises ArtifactMissing, ArtifactCorrupt, InvalidArtifactKey, or ArtifactUnwritable if the store does not answer.
        """
        _check_key(ref.key)
        try:
            data = self._load(ref.key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactMissing("The picture is no longer stored.") from error
        except OSError as error:
            raise ArtifactUnwritable(f"The picture could not be read: {_reason(error)}.") from error
        if (fault := _fault(data, ref)) is not None:
            raise ArtifactCorrupt(f"The stored picture is damaged: {fault}.")
        return data

    def link(self, key: str, seconds: int) -> str:
        """Return an address that serves the artifact to whoever has it, for so long. Object stores only.

        Raises ArtifactUnwritable, InvalidArtifactKey.
        """
        _check_key(key)
        try:
            with self._object(key) as (fs, path):
                return str(fs.sign(path, expiration=seconds))
        except OSError as error:
            raise ArtifactUnwritable(f"No link to the picture could be made: {_reason(error)}.") from error

    def delete(self, key: str) -> None:
        """Remove the artifact under `key` and the folders it leaves empty; one that is absent is fine.

        Raises ArtifactUnwritable, InvalidArtifactKey.
        """
        _check_key(key)
        try:
            if self.is_local:
                _delete_file(self._folder, key)
            else:
                with self._object(key) as (fs, path), contextlib.suppress(FileNotFoundError):
                    fs.rm_file(path)
        except OSError as error:
            raise ArtifactUnwritable(f"The picture could not be deleted: {_reason(error)}.") from error

    def remove_leftovers(self, older_than_s: float) -> int:
        """Delete temporary files of writers that died more than `older_than_s` seconds ago; return how many."""
        removed = 0
        if self.is_local:
            horizon = time.time() - older_than_s
            for path in self._folder.rglob(f".*{_TEMPORARY_SUFFIX}"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < horizon:
                        path.unlink()
                        removed += 1
        return removed

    @property
    def _folder(self) -> Path:
        return Path(self.root.split("://", 1)[-1])

    @contextlib.contextmanager
    def _object(self, key: str) -> Iterator[tuple[Any, str]]:
        import fsspec  # noqa: PLC0415  (only object stores need it)

        try:
            fs, path = fsspec.core.url_to_fs(self.root)
            yield fs, f"{path.rstrip('/')}/{key}"
        except (OSError, ArtifactUnwritable):
            raise
        except Exception as error:  # each object store's client has errors of its own
            raise OSError(errno.EIO, f"{type(error).__name__} of the object store") from error

    def _load(self, key: str) -> bytes:
        if self.is_local:
            return (self._folder / key).read_bytes()
        with self._object(key) as (fs, path):
            return bytes(fs.cat_file(path))

    def _publish_object(self, key: str, data: bytes, ref: ArtifactRef) -> None:
        # A put is atomic in object stores, and the key belongs to this attempt alone: no temporary name is needed.
        with self._object(key) as (fs, path):
            try:
                fs.pipe_file(path, data)
                _compare(bytes(fs.cat_file(path)), data, ref)
            except Exception:
                # Also when only the answer to the put was lost. What cannot be removed now goes with its job.
                with contextlib.suppress(Exception):
                    fs.rm_file(path)
                raise


def _check_key(key: str) -> None:
    names = key.split("/")
    if len(names) > _MAX_DEPTH or not all(_NAME.fullmatch(name) for name in names):
        raise InvalidArtifactKey("The artifact key is not a relative path of plain names.")


def _fault(data: bytes, ref: ArtifactRef) -> str | None:
    """Say in a few words how `data` differs from what `ref` promises; None if it does not."""
    if len(data) != ref.size_bytes:
        return f"it has {len(data)} bytes instead of {ref.size_bytes}"
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        return "its SHA-256 differs"
    if (seen := png_size(data)) != (ref.width, ref.height):
        return _pixel_fault(seen, ref)
    return None


def _compare(stored: bytes, written: bytes, ref: ArtifactRef) -> None:
    if stored != written:
        raise ArtifactUnwritable(f"The picture was not stored as it was written: {_fault(stored, ref)}.")


def _pixel_fault(seen: tuple[int, int] | None, ref: ArtifactRef) -> str:
    is_ = "is no whole PNG" if seen is None else f"measures {seen[0]}x{seen[1]} pixels"
    return f"it {is_} instead of {ref.width}x{ref.height} pixels"


def _reason(error: OSError) -> str:
    # str(error) contains the path, which is nobody's business outside.
    return error.strerror or type(error).__name__


def _publish_file(root: Path, key: str, data: bytes, ref: ArtifactRef) -> None:
    target = root / key
    with _temporary_beside(target) as temporary:
        _write_synced(temporary, data)
        _compare(temporary.read_bytes(), data, ref)
        temporary.replace(target)
        try:
            _sync_folder(target.parent)
        except OSError:
            target.unlink()
            raise


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    # The same folder is the same file system: only there is a rename atomic.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_synced(path: Path, data: bytes) -> None:
    with _create(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create(path: Path) -> BinaryIO:
    """Open a new file, making its folder; a concurrent `delete` may remove that folder while it is empty."""
    for _ in range(_CREATE_TRIALS - 1):
        with contextlib.suppress(FileNotFoundError):
            _make_folder(path.parent)
            return path.open("xb")
    _make_folder(path.parent)
    return path.open("xb")


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents; each new entry is synced, else a power cut may lose a published picture."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_file(root: Path, key: str) -> None:
    path = root / key
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[: key.count("/")]:
        try:
            folder.rmdir()
        except OSError:
            return  # not empty: other pictures lie there
