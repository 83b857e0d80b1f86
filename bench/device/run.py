"""One run: every chosen part for every chosen model, each on its own feet."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from shutil import rmtree

import torch

from bench.device.batching import measure_batching
from bench.device.exactness import check_exactness
from bench.device.layout import measure_layout
from bench.device.machine import describe_machine
from bench.device.random_models import Scale
from bench.device.report import Report
from bench.device.results import Results
from bench.device.rig import JobLost, MeteredRenderer, Rig, open_rig
from bench.device.subjects import ModelName, Subject, choose_subject, missing_room, settings_of
from bench.device.synchronisation import check_synchronisation
from bench.device.throughput import measure_throughput
from deployments.errors import DeviceOutOfMemory, RenderingError
from deployments.torch_device import free_memory, is_out_of_memory, select_device

_ORDER_SEED = 5


class Part(StrEnum):
    """A part of the check."""

    EXACTNESS = "exactness"
    SYNCHRONISATION = "synchronisation"
    THROUGHPUT = "throughput"
    BATCHING = "batching"
    LAYOUT = "layout"


@dataclass(frozen=True)
class Plan:
    """What one run does. Sizes are pixels of a side; `images` are rendered in each of `rounds` rounds."""

    models: tuple[ModelName, ...] = ("embedded", "sdxl", "flux")
    parts: tuple[Part, ...] = tuple(Part)
    sizes: tuple[int, ...] = (512, 1024)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    steps: int | None = None
    requests: int = 50
    exact_size: int = 256
    images: int = 4
    rounds: int = 6
    threads: int = 2
    scale: Scale | None = None
    device: str = "auto"


QUICK = Plan(sizes=(256,), batches=(1, 2, 4), steps=4, exact_size=64, images=3, rounds=5, scale="tiny")
"""Minutes on two cores."""


def run(plan: Plan, folder: Path, report: Report) -> Results:
    """Carry out the plan, with files of its own below `folder`; a part that fails becomes a verdict.

    `report` hears of each part when it is over.
    Raises ModelUnusable if the device is not there, ResultsUnwritable.
    """
    began = time.perf_counter()
    device = select_device(plan.device)
    results = Results(
        datetime.now(UTC).isoformat(timespec="seconds"), asdict(plan), describe_machine(device, plan.threads)
    )
    report.update(results)
    with _own_folder(folder) as own:
        for name in plan.models:
            subject = choose_subject(name, plan.scale, plan.steps, device)
            if (reason := missing_room(subject, device)) is not None:
                results.judge("all", subject.label, "skipped", reason)
                report.update(results)
                continue
            _run_subject(results, plan, subject, device, own, report)
    results.wall_s = time.perf_counter() - began
    results.complete = True
    report.update(results)
    return results


def _run_subject(
    results: Results, plan: Plan, subject: Subject, device: torch.device, folder: Path, report: Report
) -> None:
    with settings_of(subject, device, folder, plan.threads) as settings:
        with _noting(results, "load", subject.label, report):
            renderer = MeteredRenderer(settings, str(device))
            with open_rig(settings, renderer, folder) as rig:
                _run_parts(results, plan, subject, rig, folder, report)
        # The embedded model stands for all: what is checked is the engine's waiting, whatever it waits for.
        if Part.SYNCHRONISATION in plan.parts and subject.name == "embedded":
            with _noting(results, "synchronisation", subject.label, report):
                check_synchronisation(results, subject, settings, device, folder, plan.exact_size)


def _run_parts(results: Results, plan: Plan, subject: Subject, rig: Rig, folder: Path, report: Report) -> None:
    if Part.EXACTNESS in plan.parts:
        with _noting(results, "exactness", subject.label, report):
            check_exactness(results, rig, subject, plan.exact_size, plan.requests, _ORDER_SEED)
    for size in plan.sizes:
        label = f"{subject.label} {size}"
        if Part.THROUGHPUT in plan.parts:
            with _noting(results, "throughput", label, report):
                measure_throughput(results, rig, subject, size, images=plan.images, rounds=plan.rounds, folder=folder)
        if Part.BATCHING in plan.parts:
            with _noting(results, "batching", label, report):
                measure_batching(results, rig, subject, size, batches=plan.batches, rounds=plan.rounds)
        if Part.LAYOUT in plan.parts:
            with _noting(results, "layout", label, report):
                measure_layout(results, rig, subject, size, images=plan.images, rounds=plan.rounds)


@contextlib.contextmanager
def _noting(results: Results, check: str, label: str, report: Report) -> Iterator[None]:
    """Say what runs now, and turn its failure into a verdict, so that the other parts still run.

    A device that is too small for a part has not failed it.
    """
    with report.status(f"{label}: {check}"):
        try:
            yield
        except (RenderingError, JobLost, RuntimeError, OSError, ValueError) as error:
            small = is_out_of_memory(error) or (isinstance(error, JobLost) and error.code == DeviceOutOfMemory.code)
            results.judge(check, label, "skipped" if small else "failed", f"{type(error).__name__}: {error}")
            if small:
                free_memory(error)
    report.update(results)


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for this run alone, on the disk of `parent`: the engine's fsync must cost what it costs there."""
    own = parent / uuid.uuid4().hex
    own.mkdir(parents=True)
    try:
        yield own
    finally:
        rmtree(own, ignore_errors=True)
