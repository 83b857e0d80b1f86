"""A full disk, a locked database, a picture folder that takes nothing: submits are refused, and nothing is lost."""

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from callback import job_rows
from callback.config import TRACKER_NAMESPACE
from callback.store import Store
from deployments.models import ModelSettings, SimulatedOptions
from stress.callback_server import CallbackServer
from tests.apps import App
from tests.e2e.conftest import SECRET

DISK_BYTES = 12_000_000
TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1}
WITHIN_S = 60.0
MODEL = ModelSettings(name="quick", engine="simulated", simulated=SimulatedOptions(step_seconds=0.01))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of its own that is small enough to be filled."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("Mounting a small disk is not permitted here.")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607 - wherever the system has it


@pytest.fixture(scope="module")
def brittle(deploy: Callable[..., App], disk: Path) -> App:
    return deploy("brittle", models=[MODEL], data_dir=disk)


@pytest.fixture
def http(brittle: App) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=brittle.url, timeout=30, trust_env=False) as http:
        yield http


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Leave not a byte on the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def locked(disk: Path) -> Iterator[None]:
    """Hold the database's lock, as a maintenance command that was forgotten does."""
    with closing(sqlite3.connect(disk / "jobs.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def no_pictures(disk: Path) -> Iterator[None]:
    """Put a file in the place of the picture folder."""
    pictures, aside = disk / "pictures", disk / "aside"
    pictures.rename(aside)
    pictures.write_bytes(b"")
    try:
        yield
    finally:
        pictures.unlink()
        aside.rename(pictures)


def until(what: Callable[[], Any]) -> Any:
    """Return what is true at last."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def back_up(disk: Path, copy: Path) -> None:
    """Copy the database as `sqlite3 jobs.db ".backup copy"` does."""
    with closing(sqlite3.connect(disk / "jobs.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def submit(http: httpx.Client, **changed: Any) -> httpx.Response:
    return http.post("/inference", json=TINY | changed)


def completed(http: httpx.Client, job_id: str) -> bool:
    status = http.get(f"/inference/status/{job_id}", params={"wait": 25})
    assert status.status_code in {200, 503}
    assert status.status_code == 503 or status.json()["status"] in {"queued", "processing", "completed"}, status.json()
    return status.status_code == 200 and bool(status.json()["status"] == "completed")


@pytest.mark.parametrize(("fault", "said"), [(full, "its disk is full"), (locked, "another process holds its lock")])
def test_a_store_that_takes_nothing_refuses_submits_and_recovers_by_itself(
    http: httpx.Client, disk: Path, fault: Callable[[Path], Any], said: str
) -> None:
    before = submit(http, num_inference_steps=100).json()["job_id"]
    with fault(disk):
        # As long as the tracker itself waits for the lock, nobody knows more than that it does not answer.
        refused = until(lambda: (answer := submit(http)).status_code == 503 and said in answer.text and answer)
        assert refused.json()["error_code"] == "store_unavailable"
        assert int(refused.headers["Retry-After"]) > 0
        health = until(
            lambda: (answer := http.get("/health")).status_code == 503 and said in answer.text and answer.json()
        )
        assert (health["tracker"], health["store"]) == ("ok", "failing")
    after = until(lambda: (answer := submit(http)).status_code == 200 and answer)
    until(lambda: completed(http, before))
    until(lambda: completed(http, after.json()["job_id"]))
    until(lambda: http.get("/health").json()["status"] == "healthy")


def test_pictures_that_cannot_be_stored_wait_and_are_not_lost(http: httpx.Client, disk: Path) -> None:
    until(lambda: completed(http, submit(http).json()["job_id"]))
    with no_pictures(disk):
        job_id = submit(http).json()["job_id"]
        problems = until(lambda: http.get("/health").json()["problems"])
        assert any("stored" in problem for problem in problems), problems
        assert http.get(f"/inference/status/{job_id}").json()["status"] in {"queued", "processing"}
    until(lambda: completed(http, job_id))
    until(lambda: http.get("/health").json()["status"] == "healthy")


def test_a_backup_of_the_database_in_mid_load_shows_every_acknowledged_job(
    http: httpx.Client, disk: Path, tmp_path: Path
) -> None:
    acknowledged = [submit(http, seed=seed).json()["job_id"] for seed in range(50)]
    copy = tmp_path / "copy.db"
    back_up(disk, copy)
    later = [submit(http, seed=seed).json()["job_id"] for seed in range(10)]
    store = Store(f"sqlite:///{copy}")
    store.prepare()
    with store.reading() as tx:
        views = {job_id: job_rows.by_client_id(tx, "public", job_id) for job_id in acknowledged}
    store.close()
    assert None not in views.values()
    for job_id in (*acknowledged, *later):
        until(lambda job_id=job_id: completed(http, job_id))  # type: ignore[misc]


@pytest.mark.last
def test_a_service_goes_on_from_its_backup(
    deploy: Callable[..., App],
    brittle: App,
    http: httpx.Client,
    disk: Path,
    tmp_path: Path,
    receiver: CallbackServer,
) -> None:
    done = submit(http).json()["job_id"]
    until(lambda: completed(http, done))
    picture = http.get(f"/inference/result/{done}").content
    callback = {"callback_url": receiver.callback_url, "callback_secret": SECRET}
    in_progress = submit(http, num_inference_steps=100, **callback).json()["job_id"]
    # As docs/operations.md says: the store first, the pictures after it, while the service runs.
    back_up(disk, tmp_path / "jobs.db")
    shutil.copytree(disk / "pictures", tmp_path / "pictures")
    later = submit(http).json()["job_id"]

    serve.delete(brittle.name)
    ray.kill(ray.get_actor(brittle.settings.tracker_name, namespace=TRACKER_NAMESPACE), no_restart=True)
    delivered = {entry.webhook_id for entry in receiver.entries()}
    left = list(disk.glob("jobs.db*"))
    assert disk / "jobs.db-wal" in left  # of a tracker that was killed
    for file in left:
        file.unlink()
    shutil.copy(tmp_path / "jobs.db", disk / "jobs.db")
    shutil.copytree(tmp_path / "pictures", disk / "pictures", dirs_exist_ok=True)
    deploy("brittle", models=[MODEL], data_dir=disk)

    assert http.get(f"/inference/result/{done}").content == picture
    until(lambda: completed(http, in_progress))
    entries = receiver.wait_for(in_progress, timeout_s=30)
    assert {entry.webhook_id for entry in entries} >= delivered
    assert len({entry.webhook_id for entry in entries}) == 1
    assert http.get(f"/inference/status/{later}").status_code == 404
