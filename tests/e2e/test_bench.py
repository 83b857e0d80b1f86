"""The benchmarks run, at a size at which every path is taken and no figure means anything."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from bench import constant_app, naive_app, results
from bench.cli import app
from bench.plan import TINY
from bench.protection import SYSTEMS
from bench.receiver import receiver
from bench.records import ProxyModeName, Results, SystemFigures
from bench.rounds import HELD, NOOP, Rounds
from launcher.local import MARKER
from tests.apps import App

# Each of those marked `bench` starts one to three Ray instances; on two cores that takes minutes. So they run only when
# asked for, and the first, which measures the session's instance, always.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Measure = Callable[..., Results]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Run a benchmark, and see that nothing of it is left."""

    def run(*command: str) -> Results:
        file, home = tmp_path / "results.json", tmp_path / "home"
        before = set(instances())
        done = CliRunner().invoke(app, [*command, "--tiny", "--out", str(file), "--home", str(home)])
        assert done.exit_code == 0, done.output or done.exception
        assert set(instances()) <= before
        assert not any(home.iterdir())
        assert file.with_suffix(".svg").exists()
        return results.load(file)

    return run


def instances() -> list[str]:
    """Names of the Ray instances that run on this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            found.append(process.environ().get(MARKER, ""))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [name for name in found if name]


@dataclass(frozen=True)
class OurInstance:
    """The session's Ray instance, to measure."""

    url: str
    mode: ProxyModeName = "default"

    def processes(self) -> list[psutil.Process]:
        """Return Ray's processes: all are children of this one."""
        return psutil.Process().children(recursive=True)

    def haproxy_files(self) -> tuple[str, ...]:
        """There is no HAProxy."""
        return ()


@pytest.fixture
def yardsticks(deploy: Callable[..., App], tmp_path: Path) -> Iterator[str]:
    """Darkroom with the benchmark's models, and the yardsticks below its address, which this is."""
    from ray import serve

    apps = {"constant": constant_app.app, "naive": naive_app.build({"folder": str(tmp_path)})}
    with ThreadPoolExecutor(1) as thread:
        # At once: what takes the time is that processes start.
        deploying = thread.submit(deploy, "path", models=[NOOP, HELD])
        serve.run_many([serve.RunTarget(app, name=name, route_prefix=f"/path/{name}") for name, app in apps.items()])
        darkroom = deploying.result()
    yield darkroom.url
    for name in apps:
        serve.delete(name, _blocking=False)


def test_each_round_measures_every_system(yardsticks: str) -> None:
    with receiver() as callbacks:
        figures = asyncio.run(Rounds(TINY, OurInstance(yardsticks), callbacks, lambda _: None).measure())

    assert [run.system for run in figures.runs] == ["constant", "naive", "darkroom", "darkroom+callbacks"]
    assert all(run.jobs_per_s > 0 and run.submits.count == TINY.jobs for run in figures.runs)
    check_systems(figures.systems, "path:Ingress")
    assert all(ratio.estimate.median > 0 for ratio in figures.ratios)


def check_systems(systems: Sequence[SystemFigures], ingress: str) -> None:
    """Every system has its figures, and Darkroom its processes."""
    constant, naive, darkroom, called_back = systems
    assert constant.polls_per_s is None
    assert all(system.polls_per_s.median > 0 for system in (naive, darkroom, called_back))
    assert {ingress, "TrackerActor"} <= darkroom.cpu_ms_per_job.keys()


@pytest.mark.bench
def test_the_job_path_is_measured_beside_its_yardsticks(measure: Measure) -> None:
    path = measure("job-path", "--mode", "default").job_path

    assert path is not None
    assert path.headroom > 0
    (mode,) = path.modes
    assert [system.system for system in mode.systems] == ["constant", "naive", "darkroom", "darkroom+callbacks"]
    check_systems(mode.systems, "darkroom:Ingress")
    assert {ratio.name for ratio in mode.ratios} == {
        "darkroom / constant",
        "darkroom / naive",
        "darkroom+callbacks / constant",
    }
    assert {"TrackerActor", "ProxyActor", "raylet"} <= {row.role for row in mode.memory}
    assert all(listener.ports for listener in mode.listeners)


@pytest.mark.bench
def test_a_guarded_service_is_compared_with_an_open_one(measure: Measure) -> None:
    protection = measure("protection").protection

    assert protection is not None
    assert [system.system for system in protection.systems] == list(SYSTEMS)
    assert all(system.polls_per_s.median > 0 for system in protection.systems if system.polls_per_s)
    assert all(ratio.estimate.median > 0 for ratio in protection.ratios)
    assert protection.callback_signature_ms.median > 0


@pytest.mark.bench
def test_a_service_with_a_past_is_compared_with_one_without(measure: Measure) -> None:
    history = measure("history").history

    assert history is not None
    none, some = history.sizes
    assert (none.finished_jobs, some.finished_jobs) == (0, 500)
    assert none.submit_ratio.median == 1
    assert some.tracker_rss_mb > 0
    assert some.restart_s.median > 0


@pytest.mark.bench
def test_simulated_devices_are_kept_busy_and_added(measure: Measure) -> None:
    scale = measure("scale").scale

    assert scale is not None
    fixed, scaled = scale.runs
    assert (fixed.devices_at_the_end, fixed.autoscaled, scaled.autoscaled) == (2, False, True)
    assert 0 < fixed.share_of_ideal <= 1
    assert fixed.tracker_cpu_ms_per_job > 0


@pytest.mark.bench
def test_a_start_is_timed_behind_both_proxies(measure: Measure) -> None:
    start = measure("start", "--engine", "noop").start

    assert start is not None
    assert [run.mode for run in start.pictures] == ["default", "haproxy"]
    for run in start.pictures:
        assert 0 < run.http_answers_s.median <= run.jobs_accepted_s.median < run.first_picture_s.median
