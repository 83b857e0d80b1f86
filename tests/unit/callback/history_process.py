"""Runs a tracker on a store with a long history, and prints what it costs as one JSON object."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from callback.config import TrackerConfig
from callback.records import PROTOCOL_VERSION, JobView, Submit
from callback.states import JobState
from callback.tracker import JobTracker
from tests.unit.callback.history import NOW
from tests.unit.callback.tracker_kit import FolderPictures, ManualClock, new_job

WARM_UP = 20
PAIRS = 150


async def started(url: str, folder: Path) -> JobTracker:
    tracker = JobTracker(TrackerConfig(store_url=url), FolderPictures(folder), clock=ManualClock(NOW))
    await tracker.start()
    return tracker


async def submit_s(tracker: JobTracker) -> float:
    job = Submit(new_job(f"new-{time.monotonic_ns()}", fingerprint="f"))
    began = time.perf_counter()
    (answer,) = await tracker.execute(PROTOCOL_VERSION, (job,))
    assert isinstance(answer, JobView)
    return time.perf_counter() - began


async def measure(url: str, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    full = await started(url, folder)
    await submit_s(full)
    figures: dict[str, Any] = {"start_to_accepting_s": time.perf_counter() - began}

    began = time.perf_counter()
    for states in ((), (JobState.FAILED,), (JobState.FAILED, JobState.TIMEOUT)):
        await full.jobs("anyone", states, None, 100)
    figures["three_pages_s"] = time.perf_counter() - began
    began = time.perf_counter()
    await full._retention.sweep()
    figures["sweep_s"] = time.perf_counter() - began
    figures["resident_mb"] = psutil.Process().memory_info().rss / 1e6

    empty = await started(f"sqlite:///{folder}/empty.db", folder)
    pairs = [(await submit_s(full), await submit_s(empty)) for _ in range(WARM_UP + PAIRS)][WARM_UP:]
    figures["submit_p50_ms"] = median(pair[0] for pair in pairs) * 1000
    figures["submit_p50_empty_ms"] = median(pair[1] for pair in pairs) * 1000
    figures["submit_ratio"] = median(pair[0] / pair[1] for pair in pairs)
    await full.close()
    await empty.close()
    return figures


with tempfile.TemporaryDirectory() as folder:
    sys.stdout.write(json.dumps(asyncio.run(measure(sys.argv[1], Path(folder)))))
