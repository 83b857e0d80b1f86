"""A tracker that runs older code, or another configuration, is taken over under load; no accepted job is lost."""

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


def deploy_version(deploy: Callable[..., App], log_level: str) -> App:
    """Deploy; another log level is another configuration, so that the replicas are replaced."""
    model = ModelSettings(name="fast", engine="simulated", simulated=SimulatedOptions(step_seconds=0.02))
    return deploy("rolling", models=[model], log_level=log_level, callback_timeout_s=3.0)


def run_older_code(app: App) -> None:
    """Put a tracker with older code in the place of the present one."""
    name = app.settings.tracker_name
    ray.kill(ray.get_actor(name, namespace=TRACKER_NAMESPACE), no_restart=True)
    config = app.settings.tracker_config(allow_loopback=True)
    pictures = TrackerPictures(ArtifactStore(app.settings.resolved_artifacts_url()))
    options = {"name": name, "namespace": TRACKER_NAMESPACE, "lifetime": "detached", "max_restarts": -1}
    deadline = time.monotonic() + 30
    while True:
        try:
            older = (
                ray.remote(OlderTracker).options(num_cpus=0, max_concurrency=1000, **options).remote(config, pictures)
            )
            break
        except ValueError:
            # The ingress was quicker: it made one with the present code.
            ray.kill(ray.get_actor(name, namespace=TRACKER_NAMESPACE), no_restart=True)
            assert time.monotonic() < deadline
    assert ray.get(older.identity.remote(), timeout=30).code_fingerprint == "older"


@pytest.mark.defect("D21")
def test_older_code_is_taken_over_under_load(deploy: Callable[..., App], receiver: CallbackServer) -> None:
    app = deploy_version(deploy, "INFO")
    run_older_code(app)
    accepted: list[str] = []
    stop = threading.Event()

    def submit_all_the_time() -> None:
        with app.client() as client:
            while not stop.is_set():
                try:
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
        deploy_version(deploy, "DEBUG")
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
def test_a_running_job_is_finished_by_the_replica_that_is_replaced(deploy: Callable[..., App]) -> None:
    app = deploy_version(deploy, "INFO")
    with app.client() as client:
        job_id = client.submit(**{**TINY, "num_inference_steps": 100}).job_id
        deadline = time.monotonic() + 20
        while client.status(job_id).stage != "denoising":
            assert time.monotonic() < deadline
        deploy_version(deploy, "WARNING")
        status = client.wait(job_id, timeout_s=60)
    assert (status.status, status.attempt) == ("completed", 1)
    assert status.started_at is not None


def test_newer_code_is_left_alone(deploy: Callable[..., App]) -> None:
    class NewerTracker(TrackerActor):
        """The tracker as a later release would run it."""

        async def identity(self) -> TrackerIdentity:
            """Say that this is newer code."""
            return replace(await super().identity(), code_version=("999.0", 0.0), code_fingerprint="newer")

    model = ModelSettings(name="fast", engine="noop")
    app = deploy("behind", models=[model])
    name = app.settings.tracker_name
    config = app.settings.tracker_config(allow_loopback=True)
    pictures = TrackerPictures(ArtifactStore(app.settings.resolved_artifacts_url()))
    options = {"name": name, "namespace": TRACKER_NAMESPACE, "lifetime": "detached", "max_restarts": -1}
    deadline = time.monotonic() + 30
    while True:
        try:
            ray.kill(ray.get_actor(name, namespace=TRACKER_NAMESPACE), no_restart=True)
            newer = (
                ray.remote(NewerTracker).options(num_cpus=0, max_concurrency=1000, **options).remote(config, pictures)
            )
            assert ray.get(newer.identity.remote(), timeout=30).code_fingerprint == "newer"
            break
        except (ValueError, RayError):
            assert time.monotonic() < deadline
    deploy("behind", models=[model], log_level="DEBUG")
    with app.client() as client:
        assert client.wait(client.submit(**TINY).job_id, timeout_s=30).status == "completed"
    tracker = ray.get_actor(name, namespace=TRACKER_NAMESPACE)
    assert ray.get(tracker.identity.remote(), timeout=30).code_fingerprint == "newer"
