"""What finished jobs cost later ones: services with different pasts, in one instance, measured in turn."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.config import Darkroom, Replicas, free_port, serve_config
from bench.connections import Session
from bench.errors import BenchError
from bench.instance import Instance
from bench.jobs import Order
from bench.load import Reply, one
from bench.past_jobs import write_past_jobs
from bench.plan import Plan
from bench.processes import holding, memory
from bench.records import Estimate, History, HistoryFigures, ProcessMemory
from bench.statistics import estimate, percentile
from deployments.models import ModelSettings
from launcher.local import health_at
from serve_app.access.clients import PUBLIC

PAST_S = 24 * 3600.0
"""The finished jobs lie within a day, so that retention (7 days) leaves them where they are."""
RESTART_TIMEOUT_S = 120.0
_RETRY_S = 0.02
_WARM_UP = 10
_NOOP = ModelSettings(name="noop", engine="noop")


@dataclass(frozen=True, slots=True)
class _Service:
    finished_jobs: int
    url: str
    store: Path


def measure_history(plan: Plan, home: Path, tell: Callable[[str], None]) -> History:
    """Measure services with every number of finished jobs. Raises `BenchError`, `LaunchError`."""
    port = free_port()
    applications = [_application(count, home) for count in plan.history]
    services = [
        _Service(count, f"http://127.0.0.1:{port}{app.route_prefix}", app.data_dir / "jobs.db")
        for count, app in zip(plan.history, applications, strict=True)
    ]
    for service in services:
        tell(f"writing {service.finished_jobs:,} finished jobs")
        now, apart_s = time.time(), PAST_S / max(1, service.finished_jobs)
        url = f"sqlite:///{service.store}"
        write_past_jobs(url, service.finished_jobs, owner=PUBLIC.name, last=now, apart_s=apart_s)
    tell("starting")
    with Instance(serve_config(port, *applications), home) as instance:
        instance.wait_until("all services accept jobs", lambda: all(_accepts(s.url) for s in services))
        return asyncio.run(_measure(plan, instance, services, tell))


def _application(finished_jobs: int, home: Path) -> Darkroom:
    name = f"history-{finished_jobs}"
    # The pictures that the store tells of would be removed above 10 GB; here nothing but their records exists.
    settings = {"retention_bytes": 10**15}
    return Darkroom(home / name, ((_NOOP, Replicas()),), name=name, route_prefix=f"/{name}", settings=settings)


def _accepts(url: str) -> bool:
    health = health_at(url)
    return bool(health and health["accepting"])


async def _measure(
    plan: Plan, instance: Instance, services: Sequence[_Service], tell: Callable[[str], None]
) -> History:
    async with Session() as session:
        tell("submitting in turn")
        latencies_ms: dict[_Service, list[float]] = {service: [] for service in services}
        for n in range(_WARM_UP + plan.history_submits):
            for service in services:
                reply = await _submit(session, service.url)
                if n >= _WARM_UP:
                    latencies_ms[service].append(1000 * (reply.ended - reply.began))
        used = {service: _tracker_memory(instance, service) for service in services}
        restarts_s: dict[_Service, Estimate] = {}
        for service in services:
            tell(f"restarting the tracker with {service.finished_jobs:,} finished jobs")
            restarts_s[service] = estimate(
                [await _restart_s(session, instance, service) for _ in range(plan.tracker_restarts)]
            )
    first = latencies_ms[services[0]]
    return History(
        submits=plan.history_submits,
        sizes=tuple(
            HistoryFigures(
                finished_jobs=service.finished_jobs,
                store_mb=service.store.stat().st_size / 1e6,
                submit_p50_ms=percentile(latencies_ms[service], 0.5),
                submit_p99_ms=percentile(latencies_ms[service], 0.99),
                submit_ratio=estimate([ms / base for ms, base in zip(latencies_ms[service], first, strict=True)]),
                tracker_rss_mb=used[service].rss_mb,
                tracker_pss_mb=used[service].pss_mb,
                restart_s=restarts_s[service],
            )
            for service in services
        ),
    )


async def _submit(session: Session, url: str) -> Reply:
    (call,) = Order().calls(url, 1)
    return await one(session, call)


def _tracker(instance: Instance, service: _Service) -> psutil.Process | None:
    return holding(instance.processes(), service.store)


def _tracker_memory(instance: Instance, service: _Service) -> ProcessMemory:
    tracker = _tracker(instance, service)
    if tracker is None:
        raise BenchError(f"No process has {service.store} open.")
    return memory([tracker])[0]


async def _restart_s(session: Session, instance: Instance, service: _Service) -> float:
    """Kill the tracker and return the seconds until a job is accepted again."""
    tracker = _tracker(instance, service)
    if tracker is None:
        raise BenchError(f"No process has {service.store} open.")
    began = time.time()
    tracker.kill()
    while time.time() < began + RESTART_TIMEOUT_S:
        # The service itself waits for the tracker for a while, and says 503 when that takes too long.
        with contextlib.suppress(BenchError):
            return (await _submit(session, service.url)).ended - began
        await asyncio.sleep(_RETRY_S)
    raise BenchError(f"The tracker has not come back within {RESTART_TIMEOUT_S:g} s.")
