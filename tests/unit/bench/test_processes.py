"""Who used what: roles from titles, processor time, memory, open ports."""

import socket
import time
from pathlib import Path

import psutil
import pytest

from bench.processes import CpuMeter, holding, listeners, memory, role_of


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["ray::ServeReplica:darkroom:TextToImage-noop"], "darkroom:TextToImage-noop"),
        (["ray::ServeReplica:darkroom:Ingress.handle_request"], "darkroom:Ingress"),
        (["ray::TrackerActor.execute", ""], "TrackerActor"),
        (["ray::IDLE"], "IDLE"),
        (["/opt/ray/core/src/ray/raylet/raylet", "--port=1"], "raylet"),
        (["/usr/bin/python", "-u", "/opt/ray/dashboard/agent.py", "--x=1"], "agent"),
        (["/usr/bin/python", "-m", "bench.host", "config.yaml"], "bench.host"),
        ([], "ended"),
    ],
)
def test_the_title_of_a_process_says_what_it_does(command: list[str], role: str) -> None:
    assert role_of(command) == role


def test_processor_time_is_counted_from_when_the_meter_was_made() -> None:
    meter = CpuMeter([psutil.Process()])
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass

    assert sum(meter.seconds().values()) == pytest.approx(0.2, abs=0.06)
    assert sum(meter.ms_per(10).values()) == pytest.approx(20, abs=6)


def test_memory_counts_what_is_shared_once() -> None:
    (row,) = memory([psutil.Process()])

    assert row.processes == 1
    assert 0 < row.pss_mb <= row.rss_mb


def test_open_ports_are_told_with_who_can_reach_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports = {row.reach: row.ports for row in listeners([psutil.Process()])}
        assert listener.getsockname()[1] in ports["loopback"]


def test_the_process_that_has_a_file_open_is_found(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with file.open("w"):
        assert holding([psutil.Process()], file) == psutil.Process()
    assert holding([psutil.Process()], file) is None
