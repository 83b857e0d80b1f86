import asyncio
import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sent_callbacks import FIELDS, post, until

from stress.callback_server import CallbackServer
from stress.errors import BackgroundServerError, CallbackWaitTimeoutError
from stress.receiver import callbacks
from stress.receiver.entries import CallbackEntry, EntryKind

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer() as server:
        yield server


def test_a_callback_is_recorded_with_every_field(tmp_path: Path) -> None:
    headers = {
        "X-Callback-Secret": "s3",
        "webhook-id": "w1",
        "webhook-attempt": "2",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1,abc",
    }
    with CallbackServer(storage=tmp_path) as server:
        before = datetime.now(UTC)
        answer = post(server, picture=PICTURE, headers=headers, image_url="http://x/images/job-1.png")
        listed = httpx.get(f"{server.url}/callbacks", trust_env=False).json()["callbacks"]

    assert answer.status_code == 200
    assert answer.json()["status"] == "success"
    (entry,) = listed
    received_at = datetime.fromisoformat(entry.pop("received_at"))
    assert before <= received_at <= datetime.now(UTC)
    assert entry == {
        **FIELDS,
        "number": 1,
        "sender": "127.0.0.1",
        "signature": "not checked",
        "image_url": "http://x/images/job-1.png",
        "provided_secret": "s3",
        "secret_ok": None,
        "has_image": True,
        "error": None,
        "image_size": len(PICTURE),
        "saved_path": str(tmp_path / "images" / "job-1.png"),
        "sha256": hashlib.sha256(PICTURE).hexdigest(),
        "webhook_id": "w1",
        "webhook_attempt": 2,
        "webhook_timestamp": "1700000000",
        "webhook_signature": "v1,abc",
        "kind": "first",
        "answered_status": 200,
    }
    assert (tmp_path / "images" / "job-1.png").read_bytes() == PICTURE


def test_a_failure_without_a_picture_is_recorded(receiver: CallbackServer) -> None:
    post(receiver, status="failed", error="out of memory")

    (entry,) = receiver.entries_for("job-1")
    assert (entry.status, entry.error, entry.has_image, entry.saved_path) == (
        "failed",
        "out of memory",
        False,
        None,
    )


@pytest.mark.parametrize("missing", ["job_id", "status", "completed_at"])
def test_a_callback_without_a_required_part_is_422(receiver: CallbackServer, missing: str) -> None:
    parts = {name: (None, value) for name, value in FIELDS.items() if name != missing}

    answer = httpx.post(receiver.callback_url, files=parts, trust_env=False)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", missing]
    assert receiver.entries() == ()


@pytest.mark.parametrize("job_id", ["../evil", "a/b", "a\\b", "..", ".", "/etc/passwd", "a\x00b", "x" * 201])
def test_an_id_that_is_no_plain_name_is_422_and_writes_nothing(tmp_path: Path, job_id: str) -> None:
    storage = tmp_path / "deep" / "storage"
    with CallbackServer(storage=storage) as server:
        answer = post(server, job_id=job_id, picture=PICTURE)

    assert answer.status_code == 422
    assert server.entries() == ()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["callbacks.jsonl"]
    assert [path.name for path in storage.iterdir()] == ["callbacks.jsonl"]


@pytest.mark.parametrize("job_id", ["job-1", "a.b:c d", ".hidden", "écran", "x" * 200])
def test_any_plain_name_is_an_id(receiver: CallbackServer, job_id: str) -> None:
    assert post(receiver, job_id=job_id, picture=PICTURE).status_code == 200

    (entry,) = receiver.entries_for(job_id)
    assert entry.saved_path is not None
    assert entry.saved_path.name == f"{job_id}.png"


def test_the_right_secret_is_told(tmp_path: Path) -> None:
    with CallbackServer(secret="right", storage=tmp_path) as server:
        answer = post(server, picture=PICTURE, headers={"X-Callback-Secret": "right"})

    assert answer.status_code == 200
    assert [entry.secret_ok for entry in server.entries()] == [True]


@pytest.mark.parametrize("headers", [{"X-Callback-Secret": "wrong"}, {}])
def test_a_wrong_or_missing_secret_is_401_and_its_picture_is_not_kept(tmp_path: Path, headers: dict[str, str]) -> None:
    with CallbackServer(secret="right", storage=tmp_path) as server:
        answer = post(server, picture=PICTURE, headers=headers)

    assert answer.status_code == 401
    (entry,) = server.entries()
    assert entry.secret_ok is False
    assert entry.provided_secret == headers.get("X-Callback-Secret")
    assert entry.answered_status == 401
    assert (entry.has_image, entry.saved_path) == (True, None)
    assert server.picture(entry) is None
    assert [path.name for path in tmp_path.iterdir()] == ["callbacks.jsonl"]


def test_an_announced_body_over_the_limit_is_413() -> None:
    with CallbackServer(max_body_bytes=10_000) as server:
        answer = post(server, picture=b"x" * 200_000)
        assert post(server, picture=b"x" * 5_000).status_code == 200

    assert answer.status_code == 413
    assert len(server.entries()) == 1
    assert [(refusal.answered_status, refusal.size_bytes) for refusal in server.refusals()] == [
        (413, int(answer.request.headers["content-length"]))
    ]


def test_a_body_of_unknown_length_over_the_limit_is_413() -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(50):
            yield b"x" * 1000

    with CallbackServer(max_body_bytes=10_000) as server:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = httpx.post(server.callback_url, content=chunks(), headers=headers, trust_env=False)

    assert answer.status_code == 413


def test_what_is_refused_is_recorded_and_counted(receiver: CallbackServer) -> None:
    before = datetime.now(UTC)
    post(receiver, job_id="../evil")
    httpx.post(receiver.callback_url, files={"job_id": (None, "job-1")}, trust_env=False)
    httpx.post(receiver.callback_url, content=b"?", headers={"content-type": "multipart/form-data"}, trust_env=False)
    listed = httpx.get(f"{receiver.url}/refused", params={"after": 1}, trust_env=False).json()

    path, parts, unreadable = receiver.refusals()
    assert (path.number, path.job_id, path.answered_status) == (1, "../evil", 422)
    assert path.reason == "job_id: a job id must be a plain name: no path and no control characters"
    assert path.sender == "127.0.0.1"
    assert before <= path.received_at <= datetime.now(UTC)
    assert parts.reason == "status: Field required; completed_at: Field required"
    assert unreadable.answered_status == 400
    assert listed["total"] == 3
    assert [refusal["number"] for refusal in listed["refused"]] == [2, 3]
    assert receiver.entries() == ()


def test_a_sender_that_breaks_off_is_recorded(receiver: CallbackServer) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port)) as caller:
        caller.sendall(b"POST /callback HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n--half")
    until(lambda: bool(receiver.refusals()))

    (refusal,) = receiver.refusals()
    assert refusal.reason == "The sender broke off before the body was whole."
    assert (refusal.answered_status, refusal.size_bytes) == (None, 1000)


def test_a_body_that_does_not_come_is_408(receiver: CallbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "BODY_TIMEOUT_S", 0.1)
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=30) as caller:
        caller.sendall(b"POST /callback HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n--half")
        answer = b""
        while part := caller.recv(65536):
            answer += part

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert [refusal.answered_status for refusal in receiver.refusals()] == [408]


def test_duplicates_and_repeats_are_told_apart(receiver: CallbackServer) -> None:
    for webhook_id, attempt in [("a", 1), ("a", 2), ("a", 2), ("b", 1), ("a", 1)]:
        post(receiver, headers={"webhook-id": webhook_id, "webhook-attempt": str(attempt)})

    kinds = [entry.kind for entry in receiver.entries_for("job-1")]
    assert kinds == [
        EntryKind.FIRST,
        EntryKind.REPEAT,
        EntryKind.DUPLICATE,
        EntryKind.FIRST,
        EntryKind.DUPLICATE,
    ]


def test_a_second_callback_without_webhook_id_is_unidentified(receiver: CallbackServer) -> None:
    post(receiver)
    post(receiver)
    post(receiver, job_id="other")

    assert [entry.kind for entry in receiver.entries()] == [
        EntryKind.FIRST,
        EntryKind.UNIDENTIFIED,
        EntryKind.FIRST,
    ]


def test_a_forged_callback_does_not_make_the_genuine_one_a_duplicate() -> None:
    ids = {"webhook-id": "a", "webhook-attempt": "1"}
    with CallbackServer(secret="right") as server:
        post(server, headers=ids)
        post(server, headers={**ids, "X-Callback-Secret": "right"})

    assert [entry.kind for entry in server.entries()] == [EntryKind.FIRST, EntryKind.FIRST]


def test_the_list_can_be_asked_for_one_job(receiver: CallbackServer) -> None:
    post(receiver)
    post(receiver, job_id="job-2")

    answer = httpx.get(f"{receiver.url}/callbacks", params={"job_id": "job-2"}, trust_env=False)

    assert [entry["job_id"] for entry in answer.json()["callbacks"]] == ["job-2"]


def test_the_list_can_be_asked_for_what_is_new(receiver: CallbackServer) -> None:
    for number in range(1, 5):
        post(receiver, job_id=f"job-{number}")

    for after, wanted in ((2, [3, 4]), (4, []), (99, [])):
        answer = httpx.get(f"{receiver.url}/callbacks", params={"after": after}, trust_env=False)
        assert [entry["number"] for entry in answer.json()["callbacks"]] == wanted


def test_the_oldest_records_are_dropped_beyond_the_bound() -> None:
    with CallbackServer(max_entries=2) as server:
        for number in range(4):
            post(server, job_id=f"job-{number}")

    assert [entry.job_id for entry in server.entries()] == ["job-2", "job-3"]
    assert server.entries_for("job-0") == ()


def test_wait_for_returns_when_the_last_callback_arrives(receiver: CallbackServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(receiver.wait_for, "job-1", 2, timeout_s=10)
        post(receiver)
        post(receiver, job_id="other")
        assert not waiting.done()
        post(receiver)
        assert [entry.job_id for entry in waiting.result(10)] == ["job-1", "job-1"]


def test_wait_for_can_count_accepted_callbacks_only(receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503, times=1)
    post(receiver)

    with pytest.raises(CallbackWaitTimeoutError, match="0 of 1"):
        receiver.wait_for("job-1", timeout_s=0.01, accepted_only=True)
    post(receiver)

    assert [e.answered_status for e in receiver.wait_for("job-1", timeout_s=0, accepted_only=True)] == [200]


def test_wait_for_says_what_did_not_arrive(receiver: CallbackServer) -> None:
    post(receiver)

    with pytest.raises(CallbackWaitTimeoutError, match=r"1 of 2 callback\(s\) for job 'job-1'") as caught:
        receiver.wait_for("job-1", 2, timeout_s=0.01)

    assert isinstance(caught.value, TimeoutError)
    assert caught.value.received == 1


async def test_many_async_waits_end_with_their_own_callbacks() -> None:
    async with CallbackServer() as server, httpx.AsyncClient(trust_env=False) as client:
        waits = [asyncio.create_task(server.wait_for_async(f"job-{n}", timeout_s=20)) for n in range(100)]
        for number in range(100):
            parts = {name: (None, value) for name, value in {**FIELDS, "job_id": f"job-{number}"}.items()}
            await client.post(server.callback_url, files=parts)
        found: list[tuple[CallbackEntry, ...]] = await asyncio.gather(*waits)

    assert [entry.job_id for (entry,) in found] == [f"job-{n}" for n in range(100)]


async def test_an_async_wait_times_out_and_can_be_cancelled() -> None:
    async with CallbackServer() as server:
        with pytest.raises(CallbackWaitTimeoutError):
            await server.wait_for_async("job-1", timeout_s=0.01)
        waiting = asyncio.create_task(server.wait_for_async("job-1", timeout_s=20))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(post, server)

    assert len(server.entries()) == 1


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BackgroundServerError, match=f"Cannot listen on 127.0.0.1:{port}.*choose another"):
            CallbackServer(port=port).start()


def test_a_server_that_failed_to_start_can_start_once_the_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        server = CallbackServer(port=holder.getsockname()[1])
        with pytest.raises(BackgroundServerError):
            server.start()
    with server:
        assert post(server).status_code == 200


def test_stop_frees_port_and_thread_and_start_takes_the_same_port_again() -> None:
    server = CallbackServer()
    with server:
        port = server.port
        threads = [thread for thread in threading.enumerate() if thread.name == f"server-{port}"]
        assert len(threads) == 1
        assert server.start() is server
    assert not threads[0].is_alive()
    assert not server.is_running
    server.stop()
    with pytest.raises(httpx.ConnectError):
        post(server)
    with server:
        assert server.port == port
        assert post(server).status_code == 200


def test_many_receivers_live_side_by_side() -> None:
    servers = [CallbackServer() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        try:
            list(pool.map(CallbackServer.start, servers))
            for number, server in enumerate(servers):
                post(server, job_id=f"job-{number}")
        finally:
            list(pool.map(CallbackServer.stop, servers))

    assert len({server.port for server in servers}) == 20
    for number, server in enumerate(servers):
        assert [entry.job_id for entry in server.entries()] == [f"job-{number}"]


def test_the_temporary_folder_goes_with_the_server() -> None:
    with CallbackServer() as server:
        post(server, picture=PICTURE)
        (entry,) = server.entries()
        assert entry.saved_path is not None
        assert entry.saved_path.read_bytes() == PICTURE

    assert not entry.saved_path.parent.parent.exists()


def test_a_later_picture_of_the_same_job_replaces_the_earlier_one(receiver: CallbackServer) -> None:
    post(receiver, picture=PICTURE)
    post(receiver, picture=PICTURE + b"2")

    first, second = receiver.entries()
    assert first.sha256 != second.sha256
    assert second.saved_path is not None
    assert second.saved_path.read_bytes() == PICTURE + b"2"
    assert [path.name for path in second.saved_path.parent.iterdir()] == ["job-1.png"]


def test_a_secret_without_end_is_refused_and_not_recorded() -> None:
    with CallbackServer() as server:
        answers = [post(server, headers={"X-Callback-Secret": "s" * length}) for length in (4096, 4097)]
        assert [answer.status_code for answer in answers] == [200, 422]
        assert len(server.entries()) == len(server.refusals()) == 1
