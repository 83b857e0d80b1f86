"""`serve deploy` of the shipped configuration to a cluster with the dashboard on; the cluster dies; its jobs go on."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from launcher.local import MARKER, LocalDarkroom, health_at, kill_instance, processes_of
from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from tests.apps import free_port
from tests.e2e.conftest import SECRET

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
PAUSE_S = 0.25
INSTANCE = f"deploy-test-{os.getpid()}"


@dataclass(frozen=True)
class Cluster:
    """A one-node cluster that an operator started: its dashboard's address, and where jobs and pictures lie."""

    dashboard: str
    data: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
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
    data = Path(folder, "data")
    environment = os.environ | {MARKER: INSTANCE, "RAY_AUTH_MODE": "disabled", "DARKROOM_DATA_DIR": str(data)}
    # Ray's agents, which rename themselves, would write over the marker otherwise.
    environment["SPT_NOENV"] = "1"
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--node-ip-address=127.0.0.1", *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + 90
        while not _answers(url):
            assert process.poll() is None, Path(folder, "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(PAUSE_S)
        yield Cluster(url, data)
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
def config() -> dict[str, Any]:
    """The shipped configuration on a free port, with two ingress replicas."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    port = free_port()
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"]["service_url"] = f"http://127.0.0.1:{port}"
    ingress = next(one for one in application["deployments"] if one["name"] == "Ingress")
    del ingress["autoscaling_config"]
    ingress["num_replicas"] = 2
    return config


@pytest.fixture(scope="module")
def service(cluster: Cluster, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the service, deployed to the cluster."""
    file = tmp_path_factory.mktemp("deploy") / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "--address", cluster.dashboard, str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    url: str = config["applications"][0]["args"]["service_url"]
    deadline = time.monotonic() + 120
    while True:
        health = health_at(url)
        if health and health["accepting"] and health["models"]["embedded"]["running_replicas"]:
            return url
        assert time.monotonic() < deadline, health
        time.sleep(PAUSE_S)


def sessions() -> list[psutil.Process]:
    """Every process in the sessions of the cluster's processes: Ray's agents too, which rename themselves."""
    sessions = {os.getsid(process.pid) for process in processes_of(INSTANCE)}
    return [process for process in psutil.process_iter() if os.getsid(process.pid) in sessions]


def test_the_dashboard_shows_the_application_and_a_picture_is_rendered(cluster: Cluster, service: str) -> None:
    shown = httpx.get(f"{cluster.dashboard}/api/serve/applications/", timeout=10, trust_env=False).json()
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


def _quicker(config: dict[str, Any], data: Path) -> dict[str, Any]:
    """The same service on the same data, without a model to load."""
    (application,) = config["applications"]
    model = {"name": "embedded", "engine": "simulated", "simulated": {"step_seconds": 0.01}}
    arguments = application["args"] | {"models": [model], "data_dir": str(data), "lease_s": 5}
    return config | {"applications": [application | {"args": arguments, "deployments": []}]}


@pytest.mark.last
@pytest.mark.defect("D1")
@pytest.mark.defect("D21")
def test_open_jobs_go_on_under_the_launcher_after_the_whole_cluster_was_killed(
    cluster: Cluster, service: str, config: dict[str, Any], tmp_path: Path, receiver: CallbackServer
) -> None:
    asked = {"width": 64, "height": 64, "num_inference_steps": 100, "callback_secret": SECRET}
    with DarkroomClient(service) as client:
        jobs = [
            client.submit(prompt=str(seed), seed=seed, callback_url=receiver.callback_url, **asked).job_id
            for seed in range(8)
        ]
        receiver.wait_for(jobs[0], timeout_s=30)

    everything = sessions()
    assert kill_instance(INSTANCE) > 3
    assert psutil.wait_procs(everything, timeout=5)[1] == []
    assert len(receiver.entries()) < len(jobs)

    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump(_quicker(config, cluster.data)))
    with (tmp_path / "log").open("wb") as log, LocalDarkroom(file, tmp_path / "home") as darkroom:
        darkroom.start(log=log.fileno())
        darkroom.wait_until_ready()
        with DarkroomClient(darkroom.address.url) as client:
            for job_id in jobs:
                assert client.wait(job_id, timeout_s=60).status == "completed"
        for job_id in jobs:
            assert receiver.wait_for(job_id, timeout_s=30)
    assert list(processes_of(darkroom.instance)) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(darkroom.address.url, trust_env=False)
