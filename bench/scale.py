"""Throughput with more devices: simulated ones, which take a device's time and hardly any of the processor's."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.config import Darkroom, Replicas, free_port, serve_config
from bench.connections import Session
from bench.instance import Instance
from bench.jobs import Order, ended, ids_of, moment, statuses
from bench.load import burst
from bench.plan import Plan
from bench.processes import CpuMeter
from bench.records import Scale, ScaleFigures
from deployments.models import ModelSettings, SimulatedOptions
from launcher.local import health_at

STEPS = 20
# Small, because drawing and compressing are real work of the processor that a GPU's host would share among more cores.
SIZE_PX = 64
_ROLE_OF_TRACKER = "TrackerActor"
_LOADED = "model simulated is loaded"


@dataclass(frozen=True, slots=True)
class Rendered:
    """When a job was accepted, begun by a device, and in its final state. Seconds since the Unix epoch."""

    accepted: float
    started: float
    completed: float


def measure_scale(plan: Plan, home: Path, tell: Callable[[str], None]) -> Scale:
    """Measure every number of devices, then the same with an autoscaler. Raises `BenchError`, `LaunchError`."""
    runs = [_measure(plan, Replicas(count), home / str(count), tell) for count in plan.devices]
    scaled = Replicas(plan.scaled_devices, autoscaled=True)
    return Scale(runs=(*runs, _measure(plan, scaled, home / "autoscaled", tell)))


def _measure(plan: Plan, replicas: Replicas, home: Path, tell: Callable[[str], None]) -> ScaleFigures:
    how = "autoscaled " if replicas.autoscaled else ""
    tell(f"up to {replicas.count} {how}devices: starting")
    options = SimulatedOptions(step_seconds=plan.render_s / STEPS)
    model = ModelSettings(name="simulated", engine="simulated", simulated=options)
    wanted = 1 if replicas.autoscaled else replicas.count
    config = serve_config(free_port(), Darkroom(home / "darkroom", ((model, replicas),)))
    with Instance(config, home) as instance:
        instance.wait_until("all devices are there", lambda: _running(instance.url) >= wanted)
        tell(f"{replicas.count} {how}devices: rendering")
        return asyncio.run(_render(plan, replicas, instance))


def _running(url: str) -> int:
    health = health_at(url)
    return sum(model["running_replicas"] for model in health["models"].values()) if health else 0


async def _render(plan: Plan, replicas: Replicas, instance: Instance) -> ScaleFigures:
    jobs = replicas.count * plan.jobs_per_device
    order = Order(width=SIZE_PX, height=SIZE_PX, steps=STEPS)
    async with Session() as session:
        if not replicas.autoscaled:
            # What a process does only with its first job is part of a start. An autoscaler would begin to scale.
            warming = await burst(session, order.calls(instance.url, replicas.count), plan.submitters)
            await statuses(session, instance.url, ids_of(warming), plan.submitters)
        cpu = CpuMeter(instance.processes())
        submits = await burst(session, order.calls(instance.url, jobs), min(jobs, plan.submitters))
        job_ids = ids_of(submits)
        await ended(session, instance.url, job_ids[-1])
        used_s = cpu.seconds()
        _, final = await statuses(session, instance.url, job_ids, plan.submitters)
    rendered = [
        Rendered(reply.ended, moment(status, "started_at"), moment(status, "completed_at"))
        for reply, status in zip(submits.replies, final, strict=True)
    ]
    loaded = loaded_at(instance.logs)
    begin, end = submits.began, max(job.completed for job in rendered)
    tracker_s = used_s.get(_ROLE_OF_TRACKER, 0.0)
    return ScaleFigures(
        devices=replicas.count,
        autoscaled=replicas.autoscaled,
        devices_at_the_end=len(loaded),
        jobs=jobs,
        render_s=plan.render_s,
        jobs_per_s=jobs / (end - begin),
        share_of_ideal=jobs * plan.render_s / _device_s(loaded, begin, end),
        idle_share=idle_share(rendered, loaded, plan.render_s, replicas.count),
        tracker_cpu_ms_per_job=1000 * tracker_s / jobs,
        tracker_cores=tracker_s / (end - begin),
        cpu_ms_per_job={role: round(1000 * s / jobs, 3) for role, s in used_s.items() if s > 0},
    )


def loaded_at(logs: Path) -> list[float]:
    """Return when each replica had loaded its model, from the replicas' log. Seconds since the Unix epoch."""
    lines = (line for file in logs.glob("worker-*.err") for line in file.read_text().splitlines() if _LOADED in line)
    return sorted(datetime.fromisoformat(json.loads(line)["time"]).timestamp() for line in lines)


def idle_share(rendered: Sequence[Rendered], loaded: Sequence[float], render_s: float, devices: int) -> float:
    """Return the share of the devices' time under backlog in which they did not render.

    Backlog lasts from when as many jobs as devices have been accepted until the last job is begun; a device counts from
    when its model was loaded. So waiting for the router, for claims and for reports is idle time.
    """
    begin = sorted(job.accepted for job in rendered)[devices - 1]
    end = max(job.started for job in rendered)
    busy_s = sum(max(0.0, min(job.started + render_s, end) - max(job.started, begin)) for job in rendered)
    return 1.0 - busy_s / _device_s(loaded, begin, end)


def _device_s(loaded: Iterable[float], begin: float, end: float) -> float:
    return sum(max(0.0, end - max(begin, moment)) for moment in loaded)
