import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from sent_callbacks import FIELDS, SIGNING_SECRET, png, post, request, signed, until

from stress.callback_server import CallbackServer
from stress.errors import BackgroundServerError
from stress.receiver.entries import EntryKind


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_kept_records_are_there_after_a_restart(tmp_path: Path) -> None:
    headers = {"webhook-id": "w1", "webhook-attempt": "1"}
    with CallbackServer(storage=tmp_path, keep=True) as server:
        post(server, picture=png(), headers=headers)
        post(server, job_id="job-2", status="failed", error="no memory")
        post(server, job_id="../evil")
    with CallbackServer(storage=tmp_path, keep=True) as again:
        post(again, picture=png(), headers=headers)
        listed = httpx.get(f"{again.url}/callbacks", trust_env=False).json()["callbacks"]

    assert again.entries()[:2] == server.entries()
    assert [refusal.reason for refusal in again.refusals()] == [refusal.reason for refusal in server.refusals()]
    assert [entry["number"] for entry in listed] == [1, 2, 3]
    assert again.entries()[2].kind is EntryKind.DUPLICATE
    assert again.picture(again.entries()[0]) == png()


@pytest.mark.parametrize("keep", [True, False])
def test_a_journal_with_garbage_in_it_stops_no_receiver_and_names_no_file_elsewhere(tmp_path: Path, keep: bool) -> None:
    folder, stranger = tmp_path / "receiver", tmp_path / "x.png"
    stranger.write_bytes(b"mine")
    with CallbackServer(storage=folder, keep=True) as server:
        post(server, picture=png())
    journal = folder / "callbacks.jsonl"
    whole = journal.read_bytes()
    elsewhere = [whole.replace(b'"job-1"', name) for name in (b'"../../x"', b'"' + b"x" * 300 + b'"')]
    garbage = b"\xff\x00\nnull\n123\n{}\n" + b"[" * 5000 + b"\n"
    journal.write_bytes(garbage + b"".join(elsewhere) + whole)
    with CallbackServer(storage=folder, keep=keep) as again:
        assert [entry.job_id for entry in again.entries()] == (["job-1"] if keep else [])
    assert stranger.read_bytes() == b"mine"


def test_a_wait_ends_with_a_callback_of_an_earlier_run(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path, keep=True) as server:
        post(server)
    with CallbackServer(storage=tmp_path, keep=True) as again:
        assert [entry.number for entry in again.wait_for("job-1", timeout_s=0)] == [1]


def test_the_default_is_a_clean_start_that_leaves_a_strangers_files(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path) as server:
        post(server, picture=png())
        post(server, job_id="job-2", picture=png(2))
    strangers = [tmp_path / "images" / "mine.png", tmp_path / "notes.txt", tmp_path / "images" / "job-2.png"]
    for path in strangers:
        path.unlink(missing_ok=True)
        path.write_bytes(b"mine")

    with CallbackServer(storage=tmp_path) as again:
        assert again.entries() == ()

    assert all(path.read_bytes() == b"mine" for path in strangers)
    assert files(tmp_path) == ["callbacks.jsonl", "images/job-2.png", "images/mine.png", "notes.txt"]


def test_a_second_start_of_the_same_receiver_keeps_what_it_has(tmp_path: Path) -> None:
    server = CallbackServer(storage=tmp_path)
    with server:
        post(server, picture=png())
    with server:
        post(server, job_id="job-2")

        assert [entry.job_id for entry in server.entries()] == ["job-1", "job-2"]
        assert server.picture(server.entries()[0]) == png()


def test_clear_forgets_records_and_pictures_for_good(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path, keep=True) as server:
        post(server, picture=png())
        post(server, job_id="../evil")
        server.clear()
        assert (server.entries(), server.refusals()) == ((), ())
        post(server, job_id="job-2")
    with CallbackServer(storage=tmp_path, keep=True) as again:
        assert [entry.job_id for entry in again.entries()] == ["job-2"]

    assert files(tmp_path) == ["callbacks.jsonl"]


def test_records_and_pictures_are_bounded(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path, keep=True, max_entries=2) as server:
        for number in range(5):
            post(server, job_id=f"job-{number}", picture=png(number % 4))
    with CallbackServer(storage=tmp_path, keep=True, max_entries=1) as again:
        (last,) = again.entries()

    assert (last.job_id, last.number) == ("job-4", 5)
    assert files(tmp_path) == ["callbacks.jsonl", "images/job-4.png", f"received/{last.sha256}"]
    assert len((tmp_path / "callbacks.jsonl").read_text().splitlines()) == 1


def test_of_pictures_that_take_too_much_the_oldest_go_and_their_records_stay(tmp_path: Path) -> None:
    bound = 2 * len(png(1)) + len(png(1)) // 2
    with CallbackServer(storage=tmp_path, keep=True, max_picture_bytes=bound) as server:
        for number in range(5):
            post(server, job_id=f"job-{number}", picture=png(number))
        assert [server.picture(entry) is not None for entry in server.entries()] == [False] * 3 + [True] * 2
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["job-3.png", "job-4.png"]
        feed = httpx.get(f"{server.url}/feed", trust_env=False).json()["entries"]
        assert [entry["saved_path"] is not None for entry in feed] == [False] * 3 + [True] * 2
    with CallbackServer(storage=tmp_path, keep=True, max_picture_bytes=1) as again:
        assert [entry.job_id for entry in again.entries()] == [f"job-{number}" for number in range(5)]
        assert [again.picture(entry) is not None for entry in again.entries()] == [False] * 4 + [True]
        again.clear()
        assert files(tmp_path) == ["callbacks.jsonl"]


def test_a_picture_that_comes_many_times_is_counted_once(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path, max_picture_bytes=2 * len(png(1))) as server:
        for number in range(5):
            post(server, job_id=f"job-{number}", picture=png(1))
        assert all(server.picture(entry) == png(1) for entry in server.entries())


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Pass 1 or more"):
        CallbackServer(max_picture_bytes=0)


def test_a_picture_stays_while_another_record_has_it(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path, max_entries=2) as server:
        for job_id in ("job-1", "job-1", "job-2"):
            post(server, job_id=job_id, picture=png())
        entries = server.entries()
        assert [server.picture(entry) for entry in entries] == [png(), png()]
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["job-1.png", "job-2.png"]
        post(server, job_id="job-3")
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["job-2.png"]


def test_every_picture_of_a_job_is_kept_as_it_came() -> None:
    with CallbackServer() as server:
        post(server, picture=png(1))
        post(server, picture=png(2))
        first, second = server.entries()
        assert (server.picture(first), server.picture(second)) == (png(1), png(2))
        assert second.saved_path is not None
        assert second.saved_path.read_bytes() == png(2)


def test_the_journal_is_for_its_owner_only(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path, keep=True) as server:
        post(server, headers={"X-Callback-Secret": "s3"})
    with CallbackServer(storage=tmp_path, keep=True) as server:
        mode = stat.S_IMODE((tmp_path / "callbacks.jsonl").stat().st_mode)

    assert mode == 0o600
    assert server.entries()[0].provided_secret == "s3"


@pytest.mark.parametrize("torn", [b'{"callback": {"job_id": "jo', b"\xff\x00", b'{"callback": {"job_id": 5}}\n'])
def test_what_cannot_be_read_of_a_journal_costs_nothing_else(tmp_path: Path, torn: bytes) -> None:
    with CallbackServer(storage=tmp_path, keep=True) as server:
        post(server)
    with (tmp_path / "callbacks.jsonl").open("ab") as file:
        file.write(torn)
    for _ in range(2):
        with CallbackServer(storage=tmp_path, keep=True) as server:
            post(server)

    assert [entry.number for entry in server.entries()] == [1, 2, 3]


def test_two_receivers_cannot_have_the_same_folder(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path) as server:
        post(server, picture=png())
        with pytest.raises(BackgroundServerError, match=r"in use by another receiver.*choose another folder"):
            CallbackServer(storage=tmp_path).start()
        assert server.picture(server.entries()[0]) == png()
    with CallbackServer(storage=tmp_path):
        pass


def test_a_folder_that_cannot_be_had_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = CallbackServer(storage=tmp_path / "file")

    with pytest.raises(BackgroundServerError, match=r"cannot be used.*Choose another"):
        server.start()

    assert not server.is_running


def test_keeping_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="Pass storage too"):
        CallbackServer(keep=True)


def test_a_taken_port_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    with CallbackServer(storage=tmp_path / "a") as first:
        with CallbackServer(storage=tmp_path / "b") as second:
            post(second, picture=png())
        before = files(tmp_path / "b")
        with pytest.raises(BackgroundServerError, match="Cannot listen"):
            CallbackServer(port=first.port, storage=tmp_path / "b").start()

    assert files(tmp_path / "b") == before


def test_a_receiver_that_is_killed_loses_at_most_the_last_callback(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    command = [sys.executable, "-m", "stress.callback_server", "--host", "127.0.0.1", "--port", "0", "--keep"]
    command += ["--storage", str(storage)]
    environment: dict[str, str] = {**os.environ, "ASYNC_CALLBACK_SIGNING_SECRET": SIGNING_SECRET}
    acknowledged = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("Callback server listening on ").strip()
            with httpx.Client(trust_env=False) as client:
                for number in range(20):
                    made = request(f"{address}/callback", picture=png(number % 3), job_id=f"job-{number}")
                    acknowledged += client.send(signed(made)).status_code == 200
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL

    with CallbackServer(storage=storage, keep=True) as again:
        assert acknowledged == 20
        assert [entry.job_id for entry in again.entries()] == [f"job-{number}" for number in range(20)]
        assert [again.picture(entry) for entry in again.entries()] == [png(number % 3) for number in range(20)]


def test_the_module_ends_on_sigterm_and_starts_clean_the_next_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress.callback_server", "--host", "127.0.0.1", "--port", "0"]
    for _ in range(2):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().removeprefix("Callback server listening on ").strip()
                assert httpx.get(f"{address}/callbacks", trust_env=False).json() == {"callbacks": []}
                parts: dict[str, Any] = {name: (None, value) for name, value in FIELDS.items()}
                httpx.post(f"{address}/callback", files={**parts, "image": ("x.png", png())}, trust_env=False)
                until((tmp_path / "mock_callbacks" / "images" / "job-1.png").exists)
                process.terminate()
                rest, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        assert rest == "Stopping callback server...\n"
        assert process.returncode == 0

    lines = (tmp_path / "mock_callbacks" / "callbacks.jsonl").read_text().splitlines()
    assert [json.loads(line)["callback"]["job_id"] for line in lines] == ["job-1"]
