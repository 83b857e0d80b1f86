"""Every process may die or stop at any moment: no accepted job is lost, ended twice, or given a wrong picture."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import ray

from deployments.embedded import MODEL_FOLDER
from deployments.models import ModelSettings, SimulatedOptions
from stress.callback_server import CallbackServer
from tests.apps import App
from tests.e2e.conftest import SECRET

JOBS = 20
REQUESTS = [
    {"prompt": f"shape {n}", "seed": n, "width": 256, "height": 256, "num_inference_steps": 4} for n in range(JOBS)
]
LEASE_S = 4.0
TAKEOVER_S = 4.0
MAX_ATTEMPTS = 2


@pytest.fixture(scope="module")
def mortal(deploy: Callable[..., App]) -> App:
    """An application whose processes the tests kill."""
    simulated = SimulatedOptions(step_seconds=0.01, hang_on="[hang]", crash_on="[crash]")
    return deploy(
        "mortal",
        models=[
            ModelSettings(name="mortal", source=str(MODEL_FOLDER)),
            ModelSettings(name="brittle", engine="simulated", simulated=simulated, step_timeout_s=3.0),
        ],
        max_attempts=MAX_ATTEMPTS,
        lease_s=LEASE_S,
        tracker_takeover_s=TAKEOVER_S,
        callback_timeout_s=5.0,
    )


@pytest.fixture(scope="module")
def right(mortal: App) -> dict[int, str]:
    """The SHA-256 of each request's picture, rendered alone."""
    digests = {}
    with mortal.client() as client:
        for request in REQUESTS:
            job_id = client.submit(**request).job_id
            assert client.wait(job_id, timeout_s=60).status == "completed"
            digests[request["seed"]] = hashlib.sha256(client.result(job_id)).hexdigest()
    assert len(set(digests.values())) == JOBS
    return digests


def processes(word: str) -> list[psutil.Process]:
    """Return this Ray instance's processes whose title contains `word`."""
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if word in " ".join(process.cmdline())]


def tracker_process(app: App) -> psutil.Process:
    tracker = ray.get_actor(app.settings.tracker_name, namespace="darkroom")
    return psutil.Process(ray.get(tracker.identity.remote(), timeout=30).pid)


def kill_tracker(app: App) -> None:
    tracker_process(app).kill()


def kill_ingress(app: App) -> None:
    (process,) = processes(f"ServeReplica:{app.name}:Ingress")
    process.kill()


def kill_model(app: App) -> None:
    (process,) = processes(f"ServeReplica:{app.name}:TextToImage-mortal")
    process.kill()


def stop_tracker_past_its_lease(app: App) -> None:
    """Stop it until a successor answers, then let it go on."""
    old = tracker_process(app)
    os.kill(old.pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                tracker = ray.get_actor(app.settings.tracker_name, namespace="darkroom")
                if ray.get(tracker.identity.remote(), timeout=1).pid != old.pid:
                    break
            except (ValueError, ray.exceptions.RayError):
                continue
        else:
            raise AssertionError("nobody took over")
    finally:
        with contextlib.suppress(ProcessLookupError):  # Ray may have ended it for good already
            os.kill(old.pid, signal.SIGCONT)
    old.wait(20)


@pytest.fixture
def final_states(mortal: App) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Record every write of a final state in the store itself."""
    with sqlite3.connect(mortal.folder / "jobs.db", timeout=30) as db:
        db.execute("create table if not exists final_states (job_id text, state text)")
        db.execute("delete from final_states")
        db.execute(
            "create trigger if not exists note_final after update of state on jobs "
            "when new.state not in ('queued', 'processing') "
            "begin insert into final_states values (new.job_id, new.state); end"
        )

    def read() -> list[tuple[str, str]]:
        with sqlite3.connect(mortal.folder / "jobs.db", timeout=30) as db:
            return list(db.execute("select job_id, state from final_states"))

    yield read
    with sqlite3.connect(mortal.folder / "jobs.db", timeout=30) as db:
        db.execute("drop trigger note_final")


@pytest.mark.defect("D1")
@pytest.mark.defect("D6")
@pytest.mark.defect("D13")
@pytest.mark.parametrize("strike", [kill_tracker, kill_ingress, kill_model, stop_tracker_past_its_lease])
def test_twenty_jobs_survive(
    mortal: App,
    right: dict[int, str],
    receiver: CallbackServer,
    final_states: Callable[[], list[tuple[str, str]]],
    strike: Callable[[App], None],
) -> None:
    def submit(request: dict[str, Any]) -> tuple[str, int]:
        with mortal.client() as client:
            answer = client.submit(**request, callback_url=receiver.callback_url, callback_secret=SECRET)
            return answer.job_id, request["seed"]

    with ThreadPoolExecutor(JOBS) as threads:
        jobs = dict(threads.map(submit, REQUESTS))
    receiver.wait_for(next(iter(jobs)), timeout_s=60)  # some are done, one is being rendered, most wait

    strike(mortal)

    with mortal.client() as client:
        for job_id, seed in jobs.items():
            status = client.wait(job_id, timeout_s=120)
            assert status.status == "completed", status
            assert status.sha256 == right[seed]
            assert hashlib.sha256(client.result(job_id)).hexdigest() == right[seed]
    for job_id, seed in jobs.items():
        entries = receiver.wait_for(job_id, timeout_s=60)
        assert {entry.sha256 for entry in entries} == {right[seed]}
        assert len({entry.webhook_id for entry in entries}) == 1
        attempts = [entry.webhook_attempt for entry in entries]
        assert len(set(attempts)) == len(attempts), "the same attempt twice"
    assert sorted(final_states()) == sorted((job_id, "completed") for job_id in jobs)


def test_a_job_that_kills_or_hangs_its_replica_is_given_up_and_the_others_go_on(mortal: App) -> None:
    asked = {"model": "brittle", "width": 64, "height": 64, "num_inference_steps": 1}
    with mortal.client() as client:
        first, killing, second, hanging, third = (
            client.submit(prompt=prompt, **asked).job_id for prompt in ("1", "[crash]", "2", "[hang]", "3")
        )
        for job_id in (killing, hanging):
            status = client.wait(job_id, timeout_s=120)
            assert (status.status, status.error_code) == ("failed", "poisoned"), status
        for job_id in (first, second, third):
            assert client.wait(job_id, timeout_s=60).status == "completed"
