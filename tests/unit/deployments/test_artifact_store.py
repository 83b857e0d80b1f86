import errno
import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deployments import artifacts
from deployments.artifacts import ArtifactStore
from deployments.errors import ArtifactCorrupt, ArtifactMissing, ArtifactUnwritable, InvalidArtifactKey
from deployments.png import encode_png

KEY = "ab/job/1.png"
PNG = encode_png(np.arange(64 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 80, 3))


class Killed(BaseException):
    """The process dies here: no handler of the code under test sees it as an error."""


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["local", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "a" if request.param == "local" else f"memory://{tmp_path}"))


def test_a_published_picture_is_read_back_and_described(any_store: ArtifactStore) -> None:
    ref = any_store.publish(KEY, PNG, 80, 64)
    assert (ref.key, ref.size_bytes, ref.width, ref.height) == (KEY, len(PNG), 80, 64)
    assert ref.sha256 == hashlib.sha256(PNG).hexdigest()
    assert any_store.read(ref) == PNG


def test_deleting_twice_is_fine_and_reading_then_says_missing(any_store: ArtifactStore) -> None:
    ref = any_store.publish(KEY, PNG, 80, 64)
    any_store.delete(KEY)
    any_store.delete(KEY)
    with pytest.raises(ArtifactMissing):
        any_store.read(ref)


def test_publishing_a_key_again_replaces_the_picture(any_store: ArtifactStore) -> None:
    any_store.publish(KEY, PNG, 80, 64)
    other = encode_png(np.zeros((64, 64, 3), np.uint8))
    assert any_store.read(any_store.publish(KEY, other, 64, 64)) == other


def test_folders_that_a_deletion_empties_go_too(store: ArtifactStore) -> None:
    store.publish(KEY, PNG, 80, 64)
    store.publish("ab/other/1.png", PNG, 80, 64)
    store.delete(KEY)
    assert not (Path(store.root) / "ab" / "job").exists()
    store.delete("ab/other/1.png")
    assert list(Path(store.root).iterdir()) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/x.png",
        "../x.png",
        "ab/../../x.png",
        "ab//x.png",
        "ab/.hidden",
        ".",
        "a\\b",
        "ab/x\n",
        "ab/ü.png",
        "a/" * 9 + "x",
        "x" * 201,
        "ab/x.png/",
        "C:/x",
        "ab/\0",
    ],
)
def test_keys_that_are_no_plain_relative_path_are_refused(any_store: ArtifactStore, key: str) -> None:
    ref = replace(any_store.publish(KEY, PNG, 80, 64), key=key)
    with pytest.raises(InvalidArtifactKey):
        any_store.publish(key, PNG, 80, 64)
    with pytest.raises(InvalidArtifactKey):
        any_store.read(ref)
    with pytest.raises(InvalidArtifactKey):
        any_store.delete(key)


@pytest.mark.parametrize(
    ("data", "width", "height"),
    [(PNG, 64, 80), (PNG[:-1], 80, 64), (b"", 80, 64), (b"GIF89a" + PNG, 80, 64), (PNG + b"x", 80, 64)],
    ids=["other size", "half a picture", "nothing", "no PNG", "something after it"],
)
def test_what_is_not_the_picture_asked_for_is_not_published(
    store: ArtifactStore, tmp_path: Path, data: bytes, width: int, height: int
) -> None:
    with pytest.raises(ArtifactUnwritable, match="not published"):
        store.publish(KEY, data, width, height)
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    "damage", [PNG[:-20], PNG[:100] + b"\xff" + PNG[101:], b""], ids=["cut off", "one byte changed", "empty"]
)
def test_a_damaged_picture_is_not_returned(store: ArtifactStore, damage: bytes) -> None:
    ref = store.publish(KEY, PNG, 80, 64)
    (Path(store.root) / KEY).write_bytes(damage)
    with pytest.raises(ArtifactCorrupt):
        store.read(ref)


def test_a_reference_with_other_pixels_is_not_served(store: ArtifactStore) -> None:
    ref = store.publish(KEY, PNG, 80, 64)
    with pytest.raises(ArtifactCorrupt, match="80x64 pixels"):
        store.read(replace(ref, width=81))


def kill_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    targets = {
        "before the temporary file": (artifacts, "_create"),
        "between write and sync": (artifacts.os, "fsync"),
        "between sync and rename": (Path, "replace"),
    }
    monkeypatch.setattr(*targets[step], die)


@pytest.mark.parametrize("step", ["before the temporary file", "between write and sync", "between sync and rename"])
def test_a_writer_that_dies_before_the_rename_shows_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ref = store.publish("ab/other/1.png", PNG, 80, 64)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            store.publish(KEY, PNG, 80, 64)
    with pytest.raises(ArtifactMissing):
        store.read(replace(ref, key=KEY))
    assert store.publish(KEY, PNG, 80, 64).sha256 == ref.sha256


def test_a_picture_in_an_object_store_that_cannot_be_read_back_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> bytes:
        raise TimeoutError("the store does not answer")

    store = ArtifactStore(f"memory://{tmp_path}")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", silent)
    with pytest.raises(ArtifactUnwritable):
        store.publish(KEY, PNG, 80, 64)
    assert MemoryFileSystem().find(str(tmp_path)) == []


def test_a_writer_that_dies_while_it_replaces_leaves_the_old_picture_whole(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.publish(KEY, PNG, 80, 64)
    kill_at(monkeypatch, "between sync and rename")
    with pytest.raises(Killed):
        store.publish(KEY, encode_png(np.zeros((64, 80, 3), np.uint8)), 80, 64)
    assert store.read(ref) == PNG


def test_the_file_is_synced_before_it_is_visible_and_its_folders_are_synced(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(store.root) / KEY
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((os.path.realpath(f"/proc/self/fd/{descriptor}"), target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(artifacts.os, "fsync", record)
    store.publish(KEY, PNG, 80, 64)
    *before, last = synced
    assert last == (str(target.parent), True)
    assert not any(visible for _, visible in before)
    assert {str(target.parent.parent), store.root} <= {path for path, _ in before}


@pytest.mark.parametrize(("step", "target"), [("write", "_write_synced"), ("folder sync", "_sync_folder")])
def test_a_full_disk_is_a_typed_error_without_path_and_leaves_nothing(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, target: str
) -> None:
    store.publish(KEY, PNG, 80, 64)
    store.delete(KEY)

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(artifacts, target, full)
    with pytest.raises(ArtifactUnwritable, match="No space left on device") as caught:
        store.publish(KEY, PNG, 80, 64)
    assert str(tmp_path) not in str(caught.value)
    assert files_under(tmp_path) == []


def test_a_disk_that_changes_bytes_is_noticed_before_the_picture_is_visible(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = artifacts._write_synced
    monkeypatch.setattr(artifacts, "_write_synced", lambda path, data: write(path, data[:-1] + b"x"))
    with pytest.raises(ArtifactUnwritable, match="SHA-256"):
        store.publish(KEY, PNG, 80, 64)
    assert files_under(tmp_path) == []


def test_a_root_that_cannot_be_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactUnwritable, match="could not be stored: File exists"):
        ArtifactStore(str(tmp_path / "file" / "below")).publish(KEY, PNG, 80, 64)


def test_only_old_leftovers_of_dead_writers_are_removed(store: ArtifactStore) -> None:
    ref = store.publish(KEY, PNG, 80, 64)
    leftover = Path(store.root) / "ab" / "job" / ".1.png.0.tmp"
    leftover.write_bytes(b"half")
    assert store.remove_leftovers(older_than_s=3600) == 0
    os.utime(leftover, (0, 0))
    assert store.remove_leftovers(older_than_s=3600) == 1
    assert store.read(ref) == PNG


def test_the_store_is_picklable_and_knows_whether_it_is_local() -> None:
    store = pickle.loads(pickle.dumps(ArtifactStore("s3://bucket/prefix")))  # noqa: S301
    assert not store.is_local
    assert ArtifactStore("pictures").is_local


@pytest.mark.parametrize("module", ["artifacts", "models", "adapters", "engine", "simulated"])
def test_light_modules_import_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, deployments.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
