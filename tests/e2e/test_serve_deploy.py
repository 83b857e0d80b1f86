"""`serve deploy` to a cluster with the dashboard on: the shipped configuration, an upgrade, and the cluster's death."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa
import yaml

from callback import job_rows
from callback.states import JobState
from callback.store import Store
from launcher.local import MARKER, health_at, kill_instance, processes_of
from stress.callback_server import CallbackServer
from stress.client import DarkroomClient
from tests.apps import free_port
from tests.e2e.conftest import SECRET
from tests.postgres_server import PostgresServer
from tests.s3_server import running_s3

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serve_config.yaml"
ROOMS = ("callback", "deployments", "observability", "serve_app")
PAUSE_S = 0.25
TINY = {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1}
OUR_VERSION, NEXT_VERSION = 'version("darkroom")', "next"
BUCKET = "pictures"
INSTANCE = f"deploy-test-{os.getpid()}"


@dataclass(frozen=True)
class Cluster:
    """A one-node cluster that an operator started: its dashboard's address, and where jobs and pictures lie."""

    dashboard: str
    data: Path


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment of processes that keep pictures in an object store."""
    with running_s3(BUCKET) as environment:
        yield environment


@pytest.fixture(scope="module")
def cluster(s3: dict[str, str]) -> Iterator[Cluster]:
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
    environment = os.environ | s3 | {MARKER: INSTANCE, "RAY_AUTH_MODE": "disabled", "DARKROOM_DATA_DIR": str(data)}
    # Ray's agents, which rename themselves, would write over the marker otherwise.
    environment["SPT_NOENV"] = "1"
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--node-ip-address=127.0.0.1", *options],
            env=environment,
            # Away from the sources, which would come before every other release of them.
            cwd=folder,
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
    url: str = config["applications"][0]["args"]["service_url"]
    serve_deploy(cluster, config, tmp_path_factory.mktemp("deploy"))
    wait_for_health(url, lambda health: bool(health["accepting"] and health["models"]["embedded"]["running_replicas"]))
    return url


def serve_deploy(cluster: Cluster, config: dict[str, Any], folder: Path) -> None:
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "--address", cluster.dashboard, str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def wait_for_health(url: str, right: Callable[[dict[str, Any]], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ((health := health_at(url)) and right(health)):
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
    # Seconds of work: an id whose job has ended would be free for another one.
    body = {"prompt": "x", "job_id": "shared-id", "width": 768, "height": 768, "num_inference_steps": 50}
    with ExitStack() as opened, ThreadPoolExecutor(16) as threads:
        # A connection of its own each, so that the proxy spreads them over both replicas.
        clients = [opened.enter_context(httpx.Client(base_url=service, timeout=90, trust_env=False)) for _ in range(16)]
        answers = list(threads.map(lambda client: client.post("/inference", json=body), clients))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["seed"] for answer in answers}) == 1
        statuses = list(threads.map(lambda client: client.get("/inference/status/shared-id?wait=60"), clients))
    assert {status.json()["status"] for status in statuses} == {"completed"}
    assert len({status.json()["sha256"] for status in statuses}) == 1


MIGRATION = '''
"""a column that this release has no use for"""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "{head}", None, None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("of_the_next_release", sa.Text(), nullable=True))
'''


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """Our sources as a later release may have them: it answers something else, and has one migration more."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "model"))
    answers = tmp_path / "serve_app" / "api" / "health.py"
    text = answers.read_text()
    assert text.count(OUR_VERSION) == 1
    answers.write_text(text.replace(OUR_VERSION, repr(NEXT_VERSION)))
    migrations = tmp_path / "callback" / "migrations" / "versions"
    head = max(file.name.partition("_")[0] for file in migrations.glob("0*.py"))
    (migrations / "9999_next.py").write_text(MIGRATION.format(head=head))
    return tmp_path


def version_of(url: str) -> str:
    # Where one ingress replica takes over from another, a request waits for the new one's imports.
    return str(httpx.get(f"{url}/", timeout=30, trust_env=False).json()["version"])


class Load:
    """Jobs with callbacks, submitted all the time by a few callers: `accepted` by id, and what was `refused`."""

    def __init__(self, url: str, callback_url: str, **asked: Any) -> None:
        self.accepted: list[str] = []
        self.refused: list[str] = []
        self._body = TINY | {"callback_url": callback_url, "callback_secret": SECRET} | asked
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._submit) for _ in range(4)]

    def _submit(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as http:
            # Each job is looked at in the end, which takes longer than rendering it.
            while not self._stop.wait(0.5):
                try:
                    answer = http.post("/inference", json=self._body)
                except httpx.TransportError as error:
                    self.refused.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.accepted.append(answer.json()["job_id"])
                else:
                    self.refused.append(f"{answer.status_code} {answer.text}")

    def wait_for_more(self, count: int) -> None:
        """Return when so many more were accepted."""
        before, deadline = len(self.accepted), time.monotonic() + 60
        while len(self.accepted) < before + count:
            assert time.monotonic() < deadline, self.refused
            time.sleep(0.05)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.postgres
@pytest.mark.defect("D21")
def test_changed_code_and_a_changed_schema_are_deployed_under_load(
    cluster: Cluster,
    service: str,
    config: dict[str, Any],
    next_release: Path,
    database: str,
    tmp_path: Path,
    receiver: CallbackServer,
) -> None:
    (first,) = config["applications"]
    url = f"{service}/upgraded"
    args = {
        "models": [{"name": "quick", "engine": "simulated", "simulated": {"step_seconds": 0.01}}],
        "store_url": database,
        "artifacts_url": f"s3://{BUCKET}/upgraded",
        "image_link_s": 600,
        "service_url": url,
        "tracker_name": "upgraded",
    }
    placed = {"name": "upgraded", "route_prefix": "/upgraded", "import_path": first["import_path"], "args": args}
    serve_deploy(cluster, config | {"applications": [first, placed]}, tmp_path)
    try:
        wait_for_health(url, lambda health: bool(health["accepting"]))
        with Load(url, receiver.callback_url) as load:
            load.wait_for_more(20)
            environment = {"env_vars": {"PYTHONPATH": str(next_release)}}
            serve_deploy(cluster, config | {"applications": [first, placed | {"runtime_env": environment}]}, tmp_path)
            wait_for_health(url, lambda health: bool(health["accepting"]) and version_of(url) == NEXT_VERSION)
            load.wait_for_more(20)

        assert load.refused == []
        with sa.create_engine(database, poolclass=sa.NullPool).connect() as db:
            assert db.scalar(sa.text("select version_num from alembic_version")) == "9999"
            assert db.scalar(sa.text("select count(of_the_next_release) from jobs")) == 0
            assert db.scalar(sa.text("select count(*) from jobs")) == len(load.accepted)
        with DarkroomClient(url) as client:
            for job_id in load.accepted:
                assert client.wait(job_id, timeout_s=60).status == "completed"
                (entry, *_) = receiver.wait_for(job_id, timeout_s=30)
                assert sha256(client.result(job_id)).hexdigest() == entry.sha256
                # Without any credentials: the object store itself has signed the link.
                assert entry.image_url is not None
                linked = httpx.get(entry.image_url, trust_env=False).content
                assert sha256(linked).hexdigest() == entry.sha256
    finally:
        serve_deploy(cluster, config, tmp_path)


def end_instance(note: Path) -> None:
    """End what a launcher that was killed has left running."""
    if note.exists():
        kill_instance(note.read_text())


def _quicker(config: dict[str, Any], data: Path) -> dict[str, Any]:
    """The same service on the same data, without a model to load."""
    (application,) = config["applications"]
    model = {"name": "embedded", "engine": "simulated", "simulated": {"step_seconds": 0.01}}
    arguments = application["args"] | {"models": [model], "data_dir": str(data), "lease_s": 5}
    return config | {"applications": [application | {"args": arguments, "deployments": []}]}


@pytest.mark.last
@pytest.mark.defect("D1")
@pytest.mark.defect("D21")
def test_jobs_of_a_cluster_that_was_killed_go_on_under_the_launcher_which_then_stops_under_load(
    cluster: Cluster, service: str, config: dict[str, Any], tmp_path: Path, receiver: CallbackServer
) -> None:
    asked = {"width": 64, "height": 64, "num_inference_steps": 100, "callback_secret": SECRET}
    with DarkroomClient(service) as client:
        jobs = [
            client.submit(prompt=str(seed), seed=seed, callback_url=receiver.callback_url, **asked).job_id
            for seed in range(8)
        ]
        # The test before may have left a model replica that is still loading.
        receiver.wait_for(jobs[0], timeout_s=120)

    everything = sessions()
    assert kill_instance(INSTANCE) > 3
    assert psutil.wait_procs(everything, timeout=5)[1] == []
    assert len(receiver.entries()) < len(jobs)

    file, home = tmp_path / "serve_config.yaml", tmp_path / "home"
    file.write_text(yaml.safe_dump(_quicker(config, cluster.data)))
    command = [sys.executable, "-m", "launcher", "serve", "--config", str(file), "--home", str(home)]
    with (tmp_path / "log").open("wb") as log, ExitStack() as stack:
        launcher = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
        stack.callback(end_instance, home / "instance")
        stack.callback(launcher.kill)
        wait_for_health(service, lambda health: bool(health["accepting"]))
        instance = (home / "instance").read_text()
        with DarkroomClient(service) as client:
            for job_id in jobs:
                assert client.wait(job_id, timeout_s=60).status == "completed"
        for job_id in jobs:
            assert receiver.wait_for(job_id, timeout_s=30)

        with Load(service, receiver.callback_url, num_inference_steps=100) as load:
            load.wait_for_more(10)
            launcher.send_signal(signal.SIGTERM)
            assert launcher.wait(60) == 0
        assert list(processes_of(instance)) == []

    # Serve closes its port first of all; until then everything is taken.
    assert {refusal.partition("(")[0] for refusal in load.refused} <= {
        "ConnectError",
        "ReadError",
        "RemoteProtocolError",
    }
    store = Store(f"sqlite:///{cluster.data / 'jobs.db'}")
    with store.reading() as tx:
        left = [job_rows.by_client_id(tx, "public", job_id) for job_id in load.accepted]
    store.close()
    assert {view.state for view in left if view} <= {JobState.COMPLETED, JobState.QUEUED}
    assert None not in left
