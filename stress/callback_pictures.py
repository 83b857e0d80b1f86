"""Where a receiver keeps the pictures it was sent."""

import shutil
import tempfile
from pathlib import Path

MAX_NAME_BYTES = 200


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
    """`{storage}/images/{job_id}.png`, each written whole or not at all.

    Without a `storage` the folder is a temporary one, which `discard` removes; a folder that was given is
    never emptied, as it may hold another's files.
    """

    def __init__(self, storage: Path | None) -> None:
        self._given = storage
        self._temporary: Path | None = None

    def save(self, job_id: str, picture: bytes) -> Path:
        """Write the job's picture, in place of an earlier one of the same id, and return its path."""
        folder = self._root() / "images"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part", delete=False) as part:
            part.write(picture)
        path = folder / f"{plain_name(job_id)}.png"
        Path(part.name).replace(path)
        return path

    def discard(self) -> None:
        """Remove the temporary folder, if this is one."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _root(self) -> Path:
        if self._given is not None:
            return self._given
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="darkroom-callbacks-"))
        return self._temporary
