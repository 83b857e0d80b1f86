"""What counts as idle, and where it is read that a device is there."""

import json
from pathlib import Path

import pytest

from bench.scale import Rendered, idle_share, loaded_at


def jobs(*started: float) -> list[Rendered]:
    return [Rendered(accepted=0.0, started=at, completed=at + 2.1) for at in started]


def test_devices_that_go_from_job_to_job_are_never_idle() -> None:
    assert idle_share(jobs(0, 0, 2, 2, 4, 4), loaded=[-9, -9], render_s=2, devices=2) == pytest.approx(0)


def test_a_pause_between_two_jobs_is_idle_time() -> None:
    # 2 s of work, then 0.5 s without, twice.
    assert idle_share(jobs(0, 2.5, 5), loaded=[-9], render_s=2, devices=1) == pytest.approx(0.2)


def test_a_device_that_never_gets_a_job_is_idle_all_the_time() -> None:
    assert idle_share(jobs(0, 2, 4), loaded=[-9, -9], render_s=2, devices=1) == pytest.approx(0.5)


def test_a_device_that_the_autoscaler_adds_counts_from_when_it_is_loaded() -> None:
    assert idle_share(jobs(0, 2, 2, 4), loaded=[-9, 2], render_s=2, devices=1) == pytest.approx(0)


def test_loaded_models_are_found_in_the_replicas_logs(tmp_path: Path) -> None:
    line = {"time": "2026-01-01T00:00:01+00:00", "message": "model simulated is loaded on simulated"}
    (tmp_path / "worker-1.err").write_text(f"noise\n{json.dumps(line)}\n")
    (tmp_path / "raylet.err").write_text(json.dumps(line))

    assert loaded_at(tmp_path) == [1767225601.0]
