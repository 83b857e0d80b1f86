import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Form, UploadFile
from faulty_service import FaultyService, Flaw
from kit_sessions import SECRET, session_with

from stress.background_server import BackgroundServer
from stress.callback_server import CallbackServer
from stress.checks import inbox as inbox_module
from stress.checks.inbox import FaultyInbox, InboxUnreachableError, LocalInbox, RemoteInbox
from stress.checks.negative_callbacks import check_failing_target, check_redirecting_target, check_wrong_secret
from stress.checks.outcome import Verdict
from stress.checks.protocol import check_protocol

PICTURE = b"\x89PNG\r\n\x1a\n and the rest"


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer(secret=SECRET) as server:
        yield server


@pytest.fixture
async def remote(receiver: CallbackServer) -> AsyncIterator[RemoteInbox]:
    async with RemoteInbox(receiver.url) as inbox:
        yield inbox


async def send(receiver: CallbackServer, job_id: str, picture: bytes | None = PICTURE) -> int:
    parts = {"job_id": (None, job_id), "status": (None, "completed"), "completed_at": (None, "now")}
    image = {} if picture is None else {"image": ("a.png", picture, "image/png")}
    async with httpx.AsyncClient() as client:
        headers = {"X-Callback-Secret": SECRET}
        answer = await client.post(receiver.callback_url, files={**parts, **image}, headers=headers)
    return answer.status_code


async def test_a_local_inbox_has_the_address_under_which_the_service_reaches_it(receiver: CallbackServer) -> None:
    assert LocalInbox(receiver).callback_url == receiver.callback_url
    assert LocalInbox(receiver, "http://172.17.0.1:8092/").callback_url == "http://172.17.0.1:8092/callback"


@pytest.mark.parametrize("where", ["local", "remote"])
async def test_an_inbox_gives_what_arrived(where: str, receiver: CallbackServer, remote: RemoteInbox) -> None:
    inbox = LocalInbox(receiver) if where == "local" else remote
    assert isinstance(inbox, FaultyInbox)
    await send(receiver, "a")
    await send(receiver, "b", picture=None)
    (first,) = await inbox.wait_for("a", timeout_s=10)
    assert [entry.job_id for entry in await inbox.entries()] == ["a", "b"]
    assert await inbox.entries_for("b") == receiver.entries_for("b")
    assert await inbox.picture(first) == PICTURE
    assert await inbox.picture((await inbox.entries_for("b"))[0]) is None


@pytest.mark.parametrize("where", ["local", "remote"])
async def test_waiting_ends_with_what_there_is(where: str, receiver: CallbackServer, remote: RemoteInbox) -> None:
    inbox = LocalInbox(receiver) if where == "local" else remote
    await send(receiver, "a")
    assert len(await inbox.wait_for("a", count=2, timeout_s=0.1)) == 1
    assert await inbox.wait_for("nobody", timeout_s=0.0) == ()


@pytest.mark.parametrize("where", ["local", "remote"])
async def test_only_the_named_jobs_callbacks_are_treated_badly(
    where: str, receiver: CallbackServer, remote: RemoteInbox
) -> None:
    inbox = LocalInbox(receiver) if where == "local" else remote
    assert await inbox.misbehave("a", answer_status=503)
    assert await inbox.misbehave("b", redirect_to="/elsewhere")
    answers = [await send(receiver, job_id) for job_id in ("c", "b", "a", "a")]
    assert answers == [200, 307, 503, 200]


async def test_checks_that_run_beside_each_other_do_not_undo_each_others_misbehaviour(
    receiver: CallbackServer, remote: RemoteInbox
) -> None:
    jobs = [f"job-{number}" for number in range(20)]
    assert all(await asyncio.gather(*(remote.misbehave(job_id, answer_status=503) for job_id in jobs)))
    assert [await send(receiver, job_id, picture=None) for job_id in jobs] == [503] * len(jobs)


async def test_a_receiver_of_another_make_gives_its_entries_and_no_more() -> None:
    app = FastAPI()
    kept: list[dict[str, object]] = []

    @app.post("/callback")
    async def take(job_id: str = Form(), status: str = Form(), image: UploadFile | None = None) -> None:
        kept.append(
            {
                "job_id": job_id,
                "status": status,
                "completed_at": "2030-01-01T00:00:00+00:00",
                "received_at": "2030-01-01T00:00:01+00:00",
                "image_url": None,
                "provided_secret": None,
                "has_image": image is not None,
                "error": None,
                "saved_path": f"mock_callbacks/images/{job_id}.png",
            }
        )

    app.get("/callbacks")(lambda: {"callbacks": kept})
    with BackgroundServer(app, probe_path="/callbacks") as server:
        async with RemoteInbox(server.url) as inbox, httpx.AsyncClient() as client:
            parts = {"job_id": "a", "status": "completed"}
            await client.post(inbox.callback_url, data=parts, files={"image": ("a.png", PICTURE)})
            await client.post(inbox.callback_url, data={"job_id": "b", "status": "failed"})
            (entry,) = await inbox.entries_for("a")
            assert entry.has_image
            assert await inbox.picture(entry) is None
            assert not await inbox.misbehave("a", answer_status=500)


async def test_a_list_without_end_is_given_up(
    receiver: CallbackServer, remote: RemoteInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(receiver, "a")
    monkeypatch.setattr(inbox_module, "MAX_REMOTE_BYTES", 100)
    with pytest.raises(InboxUnreachableError, match="longer than 100 bytes"):
        await remote.entries()


async def test_a_receiver_that_is_gone_is_said_to_be(receiver: CallbackServer, remote: RemoteInbox) -> None:
    receiver.stop()
    with pytest.raises(InboxUnreachableError, match=r"Start one there"):
        await remote.entries()


async def test_a_restart_of_the_receiver_is_waited_for(receiver: CallbackServer, remote: RemoteInbox) -> None:
    await send(receiver, "a")
    assert len(await remote.entries()) == 1
    receiver.stop()
    reading = asyncio.create_task(remote.entries())
    await asyncio.sleep(2 * inbox_module.STRANGER_PATIENCE_S)
    assert not reading.done()
    receiver.start()
    assert len(await reading) == 1


async def test_something_that_is_no_receiver_is_said_to_be_none() -> None:
    app = FastAPI()
    app.get("/callbacks")(lambda: {"something": "else"})
    with BackgroundServer(app, probe_path="/callbacks") as server:
        async with RemoteInbox(server.url) as inbox:
            with pytest.raises(InboxUnreachableError, match="of another form"):
                await inbox.entries()


@pytest.mark.parametrize("check", [check_protocol, check_failing_target, check_redirecting_target, check_wrong_secret])
async def test_checks_pass_with_a_receiver_elsewhere(check: object, remote: RemoteInbox, tmp_path: Path) -> None:
    assert callable(check)
    async with session_with(FaultyService(), tmp_path, inbox=remote) as session:
        report = await check(session)
    assert (report.verdict, report.findings) == (Verdict.PASSED, ())


async def test_a_wrong_secret_is_seen_by_a_receiver_elsewhere(remote: RemoteInbox, tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.WRONG_SECRET), tmp_path, inbox=remote) as session:
        report = await check_protocol(session)
    assert report.verdict is Verdict.FAILED
