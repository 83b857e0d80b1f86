"""`serve deploy` of the shipped configuration to a running cluster with the dashboard on; two ingress replicas."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from launcher.local import MARKER, health_at, kill_instance
from stress.client import DarkroomClient
from tests.apps import free_port

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
INSTANCE = f"deploy-test-{os.getpid()}"


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of the dashboard of a one-node cluster that an operator started."""
    # Not pytest's own folder: Ray puts sockets there, whose paths may not be longer than 107 characters.
    folder = tempfile.mkdtemp(prefix="dk-")
    ports = {
        name: free_port()
        for name in (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "ray-client-server-port",
            "metrics-export-port",
        )
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = ["start", "--head", "--block", "--include-dashboard=true", "--num-cpus=4", f"--temp-dir={folder}"]
    environment = os.environ | {MARKER: INSTANCE, "RAY_AUTH_MODE": "disabled", "DARKROOM_DATA_DIR": f"{folder}/data"}
    # Ray's agents, which rename themselves, would write over the marker otherwise.
    environment["SPT_NOENV"] = "1"
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--node-ip-address=127.0.0.1", *options],
            env=environment,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + 90
        while not _answers(url):
            assert process.poll() is None, Path(folder, "log").read_text()
            assert time.monotonic() < deadline
        yield url
    finally:
        process.kill()
        process.wait()
        kill_instance(INSTANCE)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/serve/applications/", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def service(dashboard: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the service, deployed with the shipped configuration on a free port."""
    config = yaml.safe_load(CONFIG.read_text())
    port = free_port()
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"]["service_url"] = f"http://127.0.0.1:{port}"
    ingress = next(one for one in application["deployments"] if one["name"] == "Ingress")
    del ingress["autoscaling_config"]
    ingress["num_replicas"] = 2
    file = tmp_path_factory.mktemp("deploy") / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "--address", dashboard, str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        health = health_at(url)
        if health and health["accepting"] and health["models"]["embedded"]["running_replicas"]:
            return url
        assert time.monotonic() < deadline, health


def test_the_dashboard_shows_the_application_and_a_picture_is_rendered(dashboard: str, service: str) -> None:
    shown = httpx.get(f"{dashboard}/api/serve/applications/", timeout=10, trust_env=False).json()
    deployments = shown["applications"]["darkroom"]["deployments"]
    assert set(deployments) == {"Ingress", "TextToImage-embedded"}
    with DarkroomClient(service) as client:
        job = client.submit(prompt="a red circle", width=256, height=256, num_inference_steps=4)
        status = client.wait(job.job_id, timeout_s=60)
    assert (status.status, status.width) == ("completed", 256)


@pytest.mark.defect("D16")
def test_two_ingress_replicas_agree_about_ids_and_jobs(service: str) -> None:
    body = {"prompt": "x", "job_id": "shared-id", "width": 64, "height": 64, "num_inference_steps": 50}

    def submit(_: int) -> httpx.Response:
        # A connection of its own each, so that the proxy spreads them over both replicas.
        return httpx.post(f"{service}/inference", json=body, timeout=30, trust_env=False)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(submit, range(16)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["seed"] for answer in answers}) == 1
        statuses = list(
            threads.map(
                lambda _: httpx.get(f"{service}/inference/status/shared-id?wait=30", timeout=60, trust_env=False),
                range(16),
            )
        )
    assert {status.json()["status"] for status in statuses} == {"completed"}
    assert len({status.json()["sha256"] for status in statuses}) == 1
