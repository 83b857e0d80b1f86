"""Reading and writing results.json, and the conditions that go with each section."""

import os
import platform
import subprocess
import timeit
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
from pydantic import ValidationError

from bench.config import ROOT
from bench.errors import BenchError
from bench.records import Conditions, Record, Results


def load(file: Path) -> Results:
    """Return the results in `file`; empty ones if there is none. Raises `BenchError` for a file of another form."""
    if not file.exists():
        return Results()
    try:
        return Results.model_validate_json(file.read_text())
    except ValidationError as error:
        raise BenchError(f"{file} is not of this version's form; remove it, or name another with --out.") from error


def save(file: Path, results: Results, section: str, record: Record, conditions: Conditions) -> Results:
    """Put a section into `file`, leaving the others as they are. Returns all results."""
    merged = results.model_copy(
        update={section: record, "conditions": results.conditions | {section: conditions}},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(merged.model_dump_json(indent=1) + "\n")
    return merged


def conditions(plan: str, home: Path) -> Conditions:
    """Return where and when something is about to be measured. `home`: where stores and pictures go."""
    home.mkdir(parents=True, exist_ok=True)
    return Conditions(
        plan=plan,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        cores=psutil.cpu_count() or 0,
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        load_before=round(os.getloadavg()[0], 2),
        python_ms=round(_python_ms(), 1),
        filesystem=_filesystem(home),
        python=platform.python_version(),
        ray=version("ray"),
    )


def _python_ms() -> float:
    """Return how many milliseconds a fixed piece of Python takes here, the median of seven.

    The speed of a virtual machine changes with its neighbours: this tells a slow day from slow code.
    """
    return 1000 * median(timeit.repeat(_fixed_work, number=1, repeat=7))


def _fixed_work() -> None:
    sums: dict[str, int] = {}
    for n in range(200_000):
        name = f"job-{n % 1000}"
        sums[name] = sums.get(name, 0) + n


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - our own command
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def _filesystem(folder: Path) -> str:
    """Return the kind of file system: on one in memory a sync costs nothing, and so do our promises."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next(
        (mounts[place] for place in (folder.resolve(), *folder.resolve().parents) if place in mounts), "unknown"
    )
