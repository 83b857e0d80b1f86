"""A tracker that runs older code, or another configuration, is taken over under load; no accepted job is lost."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import ray
from ray.exceptions import RayError

from callback.actor import TrackerActor
from callback.config import TRACKER_NAMESPACE, code_fingerprint, code_version
from callback.records import TrackerIdentity
from deployments.artifacts import ArtifactStore
from deployments.models import ModelSettings, SimulatedOptions
from serve_app.service import TrackerPictures
from stress.callback_server import CallbackServer
from stress.errors import KitError
from tests.apps import App
from tests.e2e.conftest import SECRET

TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 2}


class OlderTracker(TrackerActor):
    """The tracker as an earlier release would run it."""

    async def identity(self) -> TrackerIdentity:
        """Say that this is older code."""
        identity = await super().identity()
        return replace(identity, code_version=("0.0.1", 0.0), code_fingerprint="older")


class NewerTracker(TrackerActor):
    """The tracker as a later release would run it."""

    async def identity(self) -> TrackerIdentity:
        """Say that this is newer code."""
        return replace(await super().identity(), code_version=("999.0", 0.0), code_fingerprint="newer")


class Rolling:
    """An application that is deployed again and again: another log level is another configuration."""

    def __init__(self, deploy: Callable[..., App]) -> None:
        self._deploy = deploy
        self._levels = itertools.cycle(("INFO", "DEBUG"))
        self.app = self.redeploy()

    def redeploy(self) -> App:
        """Have Serve replace every replica."""
        model = ModelSettings(name="fast", engine="simulated", simulated=SimulatedOptions(step_seconds=0.02))
        return self._deploy("rolling", models=[model], log_level=next(self._levels), callback_timeout_s=3.0)


@pytest.fixture(scope="module")
def rolling(deploy: Callable[..., App]) -> Rolling:
    return Rolling(deploy)


def run_other_code(app: App, other: type[TrackerActor], fingerprint: str) -> None:
    """Put a tracker with other code in the place of the present one."""
    name = app.settings.tracker_name
    config = app.settings.tracker_config(allow_loopback=True)
    pictures = TrackerPictures(ArtifactStore(app.settings.resolved_artifacts_url()))
    options = {"name": name, "namespace": TRACKER_NAMESPACE, "lifetime": "detached", "max_restarts": -1}
    deadline = time.monotonic() + 30
    while True:
        try:
            ray.kill(ray.get_actor(name, namespace=TRACKER_NAMESPACE), no_restart=True)
            tracker = ray.remote(other).options(num_cpus=0, max_concurrency=1000, **options).remote(config, pictures)
            assert ray.get(tracker.identity.remote(), timeout=30).code_fingerprint == fingerprint
            break
        except (ValueError, RayError):
            # The ingress was quicker: it made one with the present code.
            assert time.monotonic() < deadline


@pytest.mark.defect("D21")
def test_older_code_is_taken_over_under_load(rolling: Rolling, receiver: CallbackServer) -> None:
    app = rolling.app
    run_other_code(app, OlderTracker, "older")
    accepted: list[str] = []
    stop = threading.Event()

    def submit_all_the_time() -> None:
        with app.client() as client:
            while not stop.is_set():
                try:
                    # Less than the model renders, so that nobody waits for a queue afterwards.
                    stop.wait(0.2)
                    answer = client.submit(**TINY, callback_url=receiver.callback_url, callback_secret=SECRET)
                except KitError:
                    continue  # Serve's own hand-over between replicas may refuse; what is refused is not accepted.
                accepted.append(answer.job_id)

    threads = [threading.Thread(target=submit_all_the_time) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        receiver_has_some = lambda: len(receiver.entries()) >= 20  # noqa: E731
        deadline = time.monotonic() + 60
        while not receiver_has_some():
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        rolling.redeploy()
        before = len(accepted)
        while len(accepted) < before + 20:
            assert time.monotonic() < deadline + 60
            threading.Event().wait(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    tracker = ray.get_actor(app.settings.tracker_name, namespace=TRACKER_NAMESPACE)
    identity = ray.get(tracker.identity.remote(), timeout=30)
    assert (identity.code_fingerprint, identity.code_version) == (code_fingerprint(), code_version())
    with app.client() as client:
        for job_id in accepted:
            assert client.wait(job_id, timeout_s=60).status == "completed"
    for job_id in accepted:
        assert receiver.wait_for(job_id, timeout_s=30)


@pytest.mark.defect("D21")
def test_a_running_job_is_finished_by_the_replica_that_is_replaced(rolling: Rolling) -> None:
    with rolling.app.client() as client:
        job_id = client.submit(**{**TINY, "num_inference_steps": 100}).job_id
        deadline = time.monotonic() + 20
        while client.status(job_id).stage != "denoising":
            assert time.monotonic() < deadline
        rolling.redeploy()
        status = client.wait(job_id, timeout_s=60)
    assert (status.status, status.attempt) == ("completed", 1)
    assert status.started_at is not None


def test_newer_code_is_left_alone(rolling: Rolling) -> None:
    app = rolling.app
    run_other_code(app, NewerTracker, "newer")
    rolling.redeploy()
    with app.client() as client:
        assert client.wait(client.submit(**TINY).job_id, timeout_s=30).status == "completed"
    tracker = ray.get_actor(app.settings.tracker_name, namespace=TRACKER_NAMESPACE)
    assert ray.get(tracker.identity.remote(), timeout=30).code_fingerprint == "newer"
