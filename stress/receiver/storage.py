"""A receiver's folder: pictures and journal, emptied or read at the start, bounded while it runs."""

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from stress.errors import BackgroundServerError
from stress.receiver.entries import CallbackEntry, Refusal
from stress.receiver.journal import Journal
from stress.receiver.log import MAX_REFUSALS, CallbackLog
from stress.receiver.pictures import PictureFolder


class Storage:
    """Where the records and pictures of `log` are while the receiver runs.

    Without a `folder` it is a temporary one, without a journal, and goes with `close`. In a folder that was
    given, what an earlier receiver wrote is read back with `keep` and removed without; nothing else is touched.
    Of pictures that take more than `max_picture_bytes` the oldest are removed; the latest stays, whatever it takes.
    """

    def __init__(self, log: CallbackLog, folder: Path | None, *, keep: bool, max_picture_bytes: int) -> None:
        if keep and folder is None:
            raise ValueError("Nothing can be kept in a temporary folder. Pass storage too, or leave keep out.")
        if max_picture_bytes < 1:
            raise ValueError(f"max_picture_bytes is {max_picture_bytes}. Pass 1 or more.")
        self._log = log
        self._max_picture_bytes = max_picture_bytes
        self._folder = folder
        self._keep = keep
        self._lock = threading.Lock()
        self._opened_before = False
        self._with_picture: OrderedDict[int, CallbackEntry] = OrderedDict()
        """The records that hold a picture in the folder, by number, the oldest first."""
        self._temporary: Path | None = None
        self._journal: Journal | None = None
        self._pictures: PictureFolder | None = None

    def open(self) -> None:
        """Take the folder.

        Raises:
            BackgroundServerError: another receiver has it, or it cannot be written.
        """
        if self._folder is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="darkroom-callbacks-"))
            self._pictures = PictureFolder(self._temporary)
            return
        try:
            self._journal = Journal(self._folder)
            if not self._opened_before:
                self._pictures = PictureFolder(self._folder)
                self._begin(self._journal, self._pictures)
                self._opened_before = True
        except OSError as error:
            self.close()
            raise BackgroundServerError(
                f"The folder {self._folder} cannot be used: {error}. Choose another, or correct its permissions."
            ) from error

    def close(self) -> None:
        """Let go of the folder; a temporary one is removed."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = self._pictures = None
            self._with_picture.clear()

    def save(self, job_id: str, picture: bytes) -> tuple[Path, str]:
        """Keep a picture; return the path of the job's picture and the SHA-256 in hex."""
        if self._pictures is None:
            raise RuntimeError("The receiver is stopped. Start it first.")
        return self._pictures.save(job_id, picture)

    def picture(self, sha256: str) -> bytes | None:
        """Return a picture as it came, or None if it is not kept (any more)."""
        return None if self._pictures is None else self._pictures.read(sha256)

    def keeps(self, entry: CallbackEntry) -> bool:
        """Whether the picture that came with this callback is still kept."""
        return entry.number in self._with_picture

    def record(self, entry: CallbackEntry) -> CallbackEntry:
        """Put a callback into the log and the journal; return it with number and kind."""
        with self._lock:
            kept, dropped = self._log.record(entry)
            self._write(kept)
            if kept.saved_path is not None:
                self._with_picture[kept.number] = kept
            if dropped is not None:
                self._release(dropped)
            self._bound()
        return kept

    def refuse(self, refusal: Refusal) -> None:
        """Put a refusal into the log and the journal."""
        with self._lock:
            self._write(self._log.refuse(refusal))

    def clear(self) -> None:
        """Forget every record and remove the pictures that came with them."""
        with self._lock:
            forgotten = self._log.clear()
            if self._journal is not None:
                self._journal.rewrite(())
            for entry in forgotten:
                self._release(entry)

    def _begin(self, journal: Journal, pictures: PictureFolder) -> None:
        pictures.sweep()
        entries, refusals = journal.read()
        for entry in entries:
            _if_saved(pictures.hold, entry)
        kept = entries[-self._log.max_entries :] if self._keep else ()
        for entry in entries[: len(entries) - len(kept)]:
            _if_saved(pictures.release, entry)
        if self._keep:
            self._log.restore(kept, refusals)
            self._with_picture.update((entry.number, entry) for entry in kept if entry.saved_path is not None)
            self._bound()
        self._compact(journal)

    def _write(self, record: CallbackEntry | Refusal) -> None:
        if self._journal is None:
            return
        self._journal.add(record)
        # Twice the bounds: then a rewrite costs each record one further write at most.
        if self._journal.lines > 2 * (self._log.max_entries + MAX_REFUSALS):
            self._compact(self._journal)

    def _compact(self, journal: Journal) -> None:
        journal.rewrite((*self._log.refusals(), *self._log.entries()))

    def _release(self, entry: CallbackEntry) -> None:
        if self._pictures is not None and self._with_picture.pop(entry.number, None) is not None:
            _if_saved(self._pictures.release, entry)

    def _bound(self) -> None:
        while len(self._with_picture) > 1 and self._pictures is not None:
            if self._pictures.held_bytes <= self._max_picture_bytes:
                return
            self._release(next(iter(self._with_picture.values())))


def _if_saved(act: Callable[[str, str], None], entry: CallbackEntry) -> None:
    if entry.saved_path is not None and entry.sha256 is not None:
        act(entry.job_id, entry.sha256)
