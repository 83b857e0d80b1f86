"""From nothing to the first picture: how long each part of a start takes."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.config import Darkroom, Replicas, free_port, serve_config
from bench.connections import Session
from bench.errors import BenchError
from bench.instance import Instance
from bench.jobs import Order, ended, ids_of, moment
from bench.load import burst
from bench.plan import Plan
from bench.records import ProxyModeName, Start, StartFigures
from bench.statistics import estimate
from deployments.embedded import MODEL_FOLDER
from deployments.models import ModelSettings
from launcher.local import LocalDarkroom, answer_at, health_at

START_TIMEOUT_S = 300.0
_POLL_S = 0.1

ENGINES = ("noop", "embedded")
Moments = tuple[float, float, float, float, float]
"""Seconds since the start: HTTP answers, jobs accepted, model loaded, rendering began, picture finished."""


def measure_start(plan: Plan, home: Path, tell: Callable[[str], None], engines: Sequence[str] = ENGINES) -> Start:
    """Time starts: the noop engine behind the plan's proxies, the embedded model as `make serve` starts it.

    Raises `BenchError`, `LaunchError`.
    """
    pictures = []
    measured: list[tuple[str, ProxyModeName]] = [("noop", mode) for mode in plan.starts_behind]
    for engine, mode in [*measured, ("embedded", "default")]:
        if engine not in engines:
            continue
        moments = []
        for n in range(plan.starts):
            tell(f"start {n + 1} of {plan.starts}: {engine} engine, {mode} proxy")
            folder = home / f"{engine}-{mode}-{n}"
            moments.append(_time_noop(folder, mode) if engine == "noop" else _time_embedded(folder))
        pictures.append(_figures(engine, mode, moments))
    return Start(pictures=tuple(pictures))


def _figures(engine: str, mode: ProxyModeName, moments: Sequence[Moments]) -> StartFigures:
    answers, accepted, loaded, began, first = (estimate(values) for values in zip(*moments, strict=True))
    return StartFigures(
        engine=engine,
        mode=mode,
        http_answers_s=answers,
        jobs_accepted_s=accepted,
        model_loaded_s=loaded,
        rendering_began_s=began,
        first_picture_s=first,
    )


def _time_noop(home: Path, mode: ProxyModeName) -> Moments:
    model = ModelSettings(name="noop", engine="noop")
    config = serve_config(free_port(), Darkroom(home / "darkroom", ((model, Replicas()),)))
    began = time.time()
    with Instance(config, home, mode) as instance:
        return _until_picture(instance.url, began, instance.log)


def _time_embedded(home: Path) -> Moments:
    # The launcher starts what `make serve` starts, Ray's dashboard included.
    model = ModelSettings(name="embedded", source=str(MODEL_FOLDER))
    home.mkdir(parents=True, exist_ok=True)
    config, log = home / "config.yaml", home / "serve.log"
    darkroom = Darkroom(home / "darkroom", ((model, Replicas()),))
    config.write_text(yaml.safe_dump(serve_config(free_port(), darkroom), sort_keys=False))
    began = time.time()
    with LocalDarkroom(config, home / "home") as service, log.open("wb") as out:
        service.start(log=out.fileno())
        return _until_picture(service.address.url, began, log)


def _until_picture(url: str, began: float, log: Path) -> Moments:
    answers = _first(lambda: answer_at(url) is not None, log)
    accepting = _first(lambda: bool((health := health_at(url)) and health["accepting"]), log)
    # Submitted at once, as a client in a hurry does: the job waits for the model.
    job_id = asyncio.run(_submit(url))
    loaded = _first(lambda: _is_loaded(health_at(url)), log)
    status = asyncio.run(_final(url, job_id))
    moments = (answers, accepting, loaded, moment(status, "started_at"), moment(status, "completed_at"))
    first, second, third, fourth, fifth = (at - began for at in moments)
    return first, second, third, fourth, fifth


def _is_loaded(health: dict[str, Any] | None) -> bool:
    return bool(health and all(model["running_replicas"] for model in health["models"].values()))


def _first(true: Callable[[], bool], log: Path) -> float:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            raise BenchError(f"The service has not started within {START_TIMEOUT_S:g} s; see {log}.")
        time.sleep(_POLL_S)
    return time.time()


async def _submit(url: str) -> str:
    async with Session() as session:
        return ids_of(await burst(session, Order().calls(url, 1), 1))[0]


async def _final(url: str, job_id: str) -> dict[str, Any]:
    async with Session() as session:
        return await ended(session, url, job_id)
