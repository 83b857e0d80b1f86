"""Images per second through the engine, beside the bare diffusers loop on the same pipeline.

Two bare loops. `png` delivers what the engine delivers, a PNG in a folder; it is the fair one, and the one that is
judged. `pixels` delivers nothing and never waits: what the device could do if pictures had not to be stored. The engine
does more than either: events, its own scheduler for each job, SHA-256, fsync, reading back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from bench.device.bare import BareLoop
from bench.device.intervals import Interval, median_interval
from bench.device.pixels import decode
from bench.device.requests import again, plain_requests
from bench.device.results import Outcome, Results, Throughput, name_of
from bench.device.rig import Gaps, Rig
from bench.device.subjects import Subject
from deployments.render import RenderRequest

WANTED_RATIO = 0.95
"""Of the images/s of the bare loop that saves PNGs, the engine must keep this part."""


def measure_throughput(
    results: Results, rig: Rig, subject: Subject, size: int, *, images: int, rounds: int, folder: Path
) -> None:
    """Run engine and bare loops in turn, `rounds` times `images` pictures each, and add what came out.

    Raises JobLost if a job gets no picture, and what the pipeline raises.
    """
    bare = BareLoop(rig)
    requests = plain_requests(subject, size, images)
    runs: dict[str, Callable[[], object]] = {
        "engine": lambda: rig.render_all([again(request) for request in requests]),
        "png": lambda: bare.save_pngs(requests, folder / "bare"),
        "pixels": lambda: bare.make_pixels(requests),
    }
    # The first time that each is done is not timed; what comes out of it must be the same.
    same, png_bytes = _compare(rig, bare, requests)
    bare.save_pngs(requests, folder / "bare")
    rig.renderer.take_gaps()
    timings, gaps = _interleave(rig, runs, rounds)
    engine, png, pixels = (timings[name] for name in ("engine", "png", "pixels"))
    found = Throughput(
        model=subject.label,
        size=size,
        steps=subject.steps,
        dtype=name_of(rig.renderer.pipeline.dtype),
        memory_format=name_of(rig.renderer.memory_format),
        images=images,
        engine=median_interval([images / one.wall_s for one in engine]),
        bare_png=median_interval([images / one.wall_s for one in png]),
        bare_pixels=median_interval([images / one.wall_s for one in pixels]),
        engine_over_bare_png=_ratio([one.wall_s for one in png], [one.wall_s for one in engine]),
        engine_over_bare_pixels=_ratio([one.wall_s for one in pixels], [one.wall_s for one in engine]),
        engine_cpu_over_bare_png=_ratio([one.cpu_s for one in engine], [one.cpu_s for one in png]),
        idle_share=median_interval([one.idle_share for one in gaps]),
        gap_ms=1000 * median([gap for one in gaps for gap in one.gaps_s] or [0.0]),
        png_bytes=png_bytes,
        same_pictures=same,
    )
    results.throughput.append(found)
    _judge(results, found)


@dataclass(frozen=True, slots=True)
class _Timing:
    wall_s: float
    cpu_s: float


def _interleave(
    rig: Rig, runs: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[_Timing]], list[Gaps]]:
    """Return the timings of each run, round by round, and the gaps of the engine's; each round begins with another."""
    names = list(runs)
    timings: dict[str, list[_Timing]] = {name: [] for name in names}
    gaps: list[Gaps] = []
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            runs[name]()
            timings[name].append(_Timing(time.perf_counter() - wall_s, time.process_time() - cpu_s))
        gaps.append(rig.renderer.take_gaps())
    return timings, gaps


def _ratio(numerators: list[float], denominators: list[float]) -> Interval:
    return median_interval([above / below for above, below in zip(numerators, denominators, strict=True)])


def _compare(rig: Rig, bare: BareLoop, requests: Sequence[RenderRequest]) -> tuple[bool, int]:
    """Return whether engine and bare loop make the same pixels of each request, and the first PNG's size in bytes."""
    pngs = [rig.store.read(one.artifact) for one in rig.render_all([again(request) for request in requests])]
    same = all(
        np.array_equal(decode(png), bare.pixels([request])[0]) for png, request in zip(pngs, requests, strict=True)
    )
    return same, len(pngs[0])


def _judge(results: Results, found: Throughput) -> None:
    results.judge(
        "same",
        f"{found.model} {found.size}",
        "passed" if found.same_pictures else "failed",
        f"engine and bare loop draw {'equal' if found.same_pictures else 'other'} pixels of {found.images} requests.",
    )
    ratio = found.engine_over_bare_png
    outcome: Outcome = "passed"
    if ratio.median < WANTED_RATIO:
        outcome = "failed" if ratio.high < WANTED_RATIO else "unclear"
    results.judge(
        "throughput",
        f"{found.model} {found.size}",
        outcome,
        f"engine / bare loop with PNG {ratio:.3f}, {ratio.samples} pairs (wanted: {WANTED_RATIO:g}); "
        f"the device idled {found.idle_share.median:.1%} between jobs.",
    )
