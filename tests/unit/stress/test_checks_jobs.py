import asyncio
import base64
import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from faulty_service import FaultyService, Flaw
from kit_sessions import ASKING, BUDGETS, SECRET, session_with
from PIL import Image

from stress.background_server import BackgroundServer
from stress.callback_server import CallbackServer
from stress.checks.callbacks import duplicate_faults, section_faults
from stress.checks.group import expiring
from stress.checks.inbox import LocalInbox
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import Fault, Verdict
from stress.checks.protocol import check_protocol
from stress.checks.session import Budgets
from stress.receiver.entries import CallbackEntry, EntryKind
from stress.wire import CallbackReport, JobState, JobStatus

UNHURRIED = replace(BUDGETS, base_s=30.0)


def faults(run: JobRun) -> list[Fault]:
    return [finding.fault for finding in run.findings]


class Scripted(BackgroundServer):
    """A service that answers submits and polls as scripted; an answer is a status code and a body."""

    def __init__(self, submits: list[Any], polls: list[Any]) -> None:
        self.keys: list[str | None] = []
        self.polls = 0
        app = FastAPI()

        @app.post("/inference")
        async def submit(request: Request, response: Response) -> Any:
            self.keys.append(request.headers.get("idempotency-key"))
            code, body = submits.pop(0) if len(submits) > 1 else submits[0]
            response.status_code = code
            return body

        @app.get("/inference/status/{job_id}")
        async def status(job_id: str, response: Response) -> Any:
            self.polls += 1
            code, body = polls.pop(0) if len(polls) > 1 else polls[0]
            response.status_code = code
            return body

        app.get("/health")(lambda: {"status": "healthy"})
        super().__init__(app, probe_path="/health")


ACCEPTED = (200, {"job_id": "a", "status": "queued"})
BUSY = (429, {"detail": "too many open jobs"})
BROKEN = (500, {"detail": "oops"})
QUEUED = (200, {"id": "a", "status": "queued"})
NO_CALLBACK = {"status": "skipped", "payload_status": "failed"}
FAILED = (200, {"id": "a", "status": "failed", "error": "no", "callback": NO_CALLBACK})


async def test_a_request_has_the_sessions_wishes_and_an_id_of_its_own(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "some check")
        first = watch.request(seed=7, label="of/many", guidance_scale=3.0)
        second = watch.request(seed=7, job_id=None)
    assert (first.width, first.seed, first.guidance_scale, first.callback_secret) == (128, 7, 3.0, SECRET)
    assert first.job_id is not None
    assert first.job_id.startswith("kit-some-check-of-many-")
    assert "job_id" not in second.model_fields_set
    assert first.expiry is not None
    assert first.expiry > datetime.now(UTC)


@pytest.mark.parametrize(("fixed", "minutes"), [(False, 61.5), (True, 5.0)])
async def test_a_callback_expires_no_sooner_than_its_job_may_end_unless_that_is_fixed(
    fixed: bool, minutes: float, tmp_path: Path
) -> None:
    fields = {
        "budgets": Budgets(base_s=3600.0, per_megapixel_step_s=0.0, callback_s=90.0),
        "asking": replace(ASKING, expiry_is_fixed=fixed),
    }
    async with session_with(FaultyService(), tmp_path, **fields) as session:
        watch = Watch(session, "slow")
        request = watch.request(seed=1)
        (grouped,) = expiring(watch, [request])
    for one in (request, grouped):
        assert one.expiry is not None
        assert abs((one.expiry - datetime.now(UTC)).total_seconds() - 60 * minutes) < 20


async def test_a_slow_device_with_a_budget_to_match_is_not_convicted_of_an_expiry(tmp_path: Path) -> None:
    soon = replace(ASKING, expiry_minutes=0.1 / 60)
    async with session_with(FaultyService(step_s=0.1), tmp_path, asking=soon) as session:
        report = await check_protocol(session)
    assert report.findings == ()


async def test_a_good_job_is_traced_kept_and_made_small(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "one")
        run = await watch.run(watch.request(seed=1), label="first")
        assert session.progress.submitted == [("one", run.job_id)]  # type: ignore[attr-defined]
        assert session.progress.ended == {("one", run.job_id): True}  # type: ignore[attr-defined]
    assert run.findings == []
    trace = run.trace
    assert trace is not None
    assert trace.picture is not None
    assert (trace.callbacks, trace.picture.width, trace.picture.valid) == (1, 128, True)
    assert trace.final_s is not None
    assert 0 <= trace.submitted_s <= trace.final_s
    assert "callback_secret" not in trace.request
    assert trace.picture.path == str(tmp_path / "one" / f"{run.job_id}.png")
    assert (tmp_path / "one" / f"{run.job_id}.png").read_bytes() == run.picture
    kind, _, data = (trace.picture.thumbnail or "").partition(",")
    assert kind == "data:image/jpeg;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 160


async def test_a_busy_service_is_asked_again_under_the_same_key(tmp_path: Path) -> None:
    service = Scripted([BUSY, BUSY, ACCEPTED], [FAILED])
    async with session_with(service, tmp_path, budgets=UNHURRIED) as session:
        watch = Watch(session, "busy")
        run = await watch.submit(watch.request(seed=1, job_id="a"))
    assert run.accepted
    assert len(service.keys) == 3
    assert len(set(service.keys)) == 1


async def test_a_service_that_stays_busy_has_refused(tmp_path: Path) -> None:
    async with session_with(Scripted([BUSY], [FAILED]), tmp_path, budgets=Budgets(base_s=1.0)) as session:
        watch = Watch(session, "busy")
        run = await watch.run(watch.request(seed=1))
    assert not run.accepted
    assert faults(run) == [Fault.REFUSED_SUBMIT]
    assert run.job_id == run.request.job_id


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ((409, {"detail": "in use"}), Fault.REFUSED_SUBMIT),
        ((422, {"detail": "wrong"}), Fault.REFUSED_SUBMIT),
        (BROKEN, Fault.REFUSED_SUBMIT),
        ((200, ["not", "an", "answer"]), Fault.WRONG_ANSWER),
        ((302, {}), Fault.WRONG_ANSWER),
    ],
)
async def test_a_refused_submit_is_a_finding_and_is_not_repeated(
    answer: tuple[int, Any], fault: Fault, tmp_path: Path
) -> None:
    service = Scripted([answer], [FAILED])
    async with session_with(service, tmp_path) as session:
        watch = Watch(session, "refused")
        run = await watch.run(watch.request(seed=1))
    assert faults(run) == [fault]
    assert len(service.keys) == 1


async def test_a_service_that_is_gone_gives_no_answer(tmp_path: Path) -> None:
    service = FaultyService()
    async with session_with(service, tmp_path) as session:
        await asyncio.to_thread(service.stop)
        watch = Watch(session, "gone")
        run = await watch.run(watch.request(seed=1))
    assert faults(run) == [Fault.NO_ANSWER]


async def test_broken_polls_are_told_once_and_waited_out(tmp_path: Path) -> None:
    service = Scripted([ACCEPTED], [QUEUED, BROKEN, BROKEN, QUEUED, FAILED])
    async with session_with(service, tmp_path) as session:
        watch = Watch(session, "broken")
        run = await watch.submit(watch.request(seed=1, job_id="a", callback_url=None))
        await watch.follow(run)
    assert faults(run) == [Fault.WRONG_ANSWER, Fault.FAILED_JOB]
    assert service.polls == 5


async def test_busy_polls_are_no_fault(tmp_path: Path) -> None:
    async with session_with(Scripted([ACCEPTED], [BUSY, BUSY, FAILED]), tmp_path) as session:
        watch = Watch(session, "busy")
        run = await watch.submit(watch.request(seed=1, job_id="a", callback_url=None))
        await watch.await_final(run)
    assert run.findings == []


async def test_two_names_of_an_id_that_differ_are_a_wrong_id(tmp_path: Path) -> None:
    polls = [(200, {"id": "b", "job_id": "a", "status": "failed", "callback": NO_CALLBACK})]
    async with session_with(Scripted([ACCEPTED], polls), tmp_path) as session:
        watch = Watch(session, "names")
        run = await watch.submit(watch.request(seed=1, job_id="a", callback_url=None))
        await watch.await_final(run)
    assert faults(run) == [Fault.WRONG_JOB_ID]


async def test_a_late_callback_section_is_said_to_be_late(tmp_path: Path) -> None:
    bare = (200, {"id": "a", "status": "failed", "error": "no"})
    async with session_with(Scripted([ACCEPTED], [bare, bare, FAILED]), tmp_path) as session:
        watch = Watch(session, "late")
        run = await watch.submit(watch.request(seed=1, job_id="a", callback_url=None))
        await watch.await_final(run)
    assert faults(run) == [Fault.FINAL_WITHOUT_CALLBACK]
    assert "s later" in run.findings[0].sentence


async def test_a_callback_that_fails_at_first_and_is_repeated_is_no_fault(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "repeat")
        request = watch.request(seed=1)
        await session.inbox.misbehave(request.job_id, answer_status=503)  # type: ignore[attr-defined]
        run = await watch.run(request)
        await watch.recheck([run])
    assert run.findings == []
    assert run.status is not None
    assert run.status.callback is not None
    assert run.status.callback.status == "delivered"


async def test_a_duplicate_that_comes_late_is_found_by_the_recheck(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "late")
        run = await watch.run(watch.request(seed=1))
        assert run.findings == []
        first = run.entries[0]
        async with httpx.AsyncClient() as sender:
            parts = {name: (None, getattr(first, name)) for name in ("job_id", "status", "completed_at")}
            headers = {
                "X-Callback-Secret": SECRET,
                "webhook-id": str(first.webhook_id),
                "webhook-attempt": str(first.webhook_attempt),
            }
            files: Any = {**parts, "image": ("a.png", run.picture or b"", "image/png")}
            await sender.post(session.inbox.callback_url, files=files, headers=headers)
        await watch.recheck([run])
        await watch.recheck([run])
    assert faults(run) == [Fault.DUPLICATE_CALLBACK]
    assert run.trace is not None
    assert run.trace.callbacks == 2


async def test_callbacks_of_an_earlier_job_of_the_id_are_not_counted(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "again")
        first = await watch.run(watch.request(seed=1, job_id="same"))
        second = await watch.run(watch.request(seed=2, job_id="same"))
        await watch.recheck([second])
    assert first.findings + second.findings == []
    assert (len(first.entries), len(second.entries)) == (1, 1)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["same.2.png", "same.png"]


async def test_the_report_has_findings_latencies_and_what_is_added(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.FAILS), tmp_path) as session:
        watch = Watch(session, "some")
        runs = [await watch.run(watch.request(seed=seed)) for seed in range(2)]
        report = watch.report("some", "Some", runs, figures={"jobs_per_s": 2.0}, series={"memory_mb": ((0.0, 1.0),)})
    assert report.verdict is Verdict.FAILED
    assert [finding.fault for finding in report.findings] == [Fault.FAILED_JOB] * 2
    assert {finding.job_id for finding in report.findings} == {run.job_id for run in runs}
    assert report.figures["jobs"] == 2
    assert {"submit_p50_ms", "submit_p99_ms", "final_p50_s", "callback_p99_s", "jobs_per_s"} <= set(report.figures)
    assert report.series == {"memory_mb": ((0.0, 1.0),)}


async def test_a_missing_signature_is_found_where_the_receiver_has_a_key(tmp_path: Path) -> None:
    key = "whsec_" + base64.b64encode(b"k" * 32).decode()
    with CallbackServer(secret=SECRET, signing_secret=key) as receiver:
        async with session_with(FaultyService(), tmp_path, inbox=LocalInbox(receiver)) as session:
            watch = Watch(session, "signed")
            run = await watch.run(watch.request(seed=1))
    assert faults(run) == [Fault.WRONG_SIGNATURE]


FINAL = JobStatus(job_id="a", status=JobState.COMPLETED)
DELIVERED = CallbackReport(status="delivered", status_code=200, payload_status="completed")


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"status_code": None}, 1),
        ({"status_code": 500}, 1),
        ({"status": "failed", "status_code": 500}, 1),
        ({"status": "error", "status_code": 500}, 1),
        ({"status": "skipped"}, 1),
        ({"payload_status": "failed"}, 1),
        ({"payload_status": None, "status": "expired"}, 2),
    ],
)
def test_a_section_must_say_delivered_by_success_and_what_was_sent(changes: dict[str, Any], count: int) -> None:
    found = section_faults("a", FINAL, DELIVERED.model_copy(update=changes))
    assert [finding.fault for finding in found] == [Fault.WRONG_CALLBACK_SECTION] * count


def entry(**fields: Any) -> CallbackEntry:
    given = {"webhook_id": "w", "webhook_attempt": 1, "answered_status": 200, **fields}
    return CallbackEntry(job_id="a", status="completed", completed_at="now", received_at=datetime.now(UTC), **given)


@pytest.mark.parametrize(
    ("second", "is_duplicate"),
    [
        (lambda: entry(kind=EntryKind.DUPLICATE), True),
        (lambda: entry(webhook_attempt=2, kind=EntryKind.REPEAT), False),
        (lambda: entry(webhook_id="other"), True),
        (lambda: entry(webhook_id=None, kind=EntryKind.UNIDENTIFIED), True),
    ],
)
def test_a_repeat_is_told_from_a_duplicate(second: Callable[[], CallbackEntry], is_duplicate: bool) -> None:
    assert bool(duplicate_faults("a", [entry(), second()])) == is_duplicate


@pytest.mark.parametrize(
    ("changes", "is_duplicate"),
    [
        ({"attempts": 1}, True),
        ({"attempts": 1, "final": True}, True),
        ({"attempts": 1, "final": False}, False),
        ({"attempts": 2}, False),
        ({"attempts": None}, False),
        ({"attempts": 1, "status": "failed", "status_code": 503}, False),
    ],
)
def test_no_attempt_follows_the_one_that_the_service_calls_delivered(
    changes: dict[str, Any], is_duplicate: bool
) -> None:
    entries = [entry(), entry(webhook_attempt=2, kind=EntryKind.REPEAT)]
    assert bool(duplicate_faults("a", entries, DELIVERED.model_copy(update=changes))) == is_duplicate


def test_an_unidentified_callback_after_one_that_was_refused_is_a_repeat() -> None:
    refused = entry(webhook_id=None, answered_status=503)
    assert duplicate_faults("a", [refused, entry(webhook_id=None, kind=EntryKind.UNIDENTIFIED)]) == []
