"""Whether convolutions are faster with `channels_last`: the engine with each memory format in turn.

`ModelSettings.memory_format` is the setting. The pictures of the two differ by what rounding does to sums in another
order.
"""

import time
from collections.abc import Sequence

import torch

from bench.device.intervals import median_interval
from bench.device.pixels import decode, distance, worst
from bench.device.requests import again, plain_requests
from bench.device.results import Distance, Layout, Results, name_of
from bench.device.rig import Rig
from bench.device.subjects import Subject
from deployments.render import RenderRequest

_CONTIGUOUS, _CHANNELS_LAST = torch.contiguous_format, torch.channels_last
_FORMATS = (_CONTIGUOUS, _CHANNELS_LAST)


def measure_layout(results: Results, rig: Rig, subject: Subject, size: int, *, images: int, rounds: int) -> None:
    """Time `images` pictures with each format, `rounds` times in turn; leaves the pipeline as it was found.

    Raises JobLost if a job gets no picture.
    """
    requests = plain_requests(subject, size, images)
    apart, repeatable = _compare(rig, requests)
    rates = _interleave(rig, requests, rounds)
    found = Layout(
        model=subject.label,
        size=size,
        steps=subject.steps,
        dtype=name_of(rig.renderer.pipeline.dtype),
        contiguous=median_interval(rates[_CONTIGUOUS]),
        channels_last=median_interval(rates[_CHANNELS_LAST]),
        gain=median_interval(
            [after / before for before, after in zip(rates[_CONTIGUOUS], rates[_CHANNELS_LAST], strict=True)]
        ),
        distance=apart,
        repeatable=repeatable,
    )
    results.layout.append(found)
    results.judge(
        "layout",
        f"{found.model} {size}",
        "passed" if repeatable else "failed",
        f"channels_last renders {found.gain:.2f} times as fast as contiguous; "
        + ("each repeats its bytes." if repeatable else "a request did not give the same bytes twice."),
    )


def _compare(rig: Rig, requests: Sequence[RenderRequest]) -> tuple[Distance, bool]:
    """Return how far the pictures of the two formats are apart, and whether each format gives its bytes twice."""
    pictures, repeated = [], []
    for memory_format in _FORMATS:
        with rig.renderer.laid_out(memory_format):
            first, second = _pngs(rig, requests), _pngs(rig, requests)
        pictures.append([decode(png) for png in first])
        repeated.append(first == second)
    return worst(distance(one, other) for one, other in zip(*pictures, strict=True)), all(repeated)


def _interleave(rig: Rig, requests: Sequence[RenderRequest], rounds: int) -> dict[torch.memory_format, list[float]]:
    """Return images/s with each format, round by round; each round begins with the other one."""
    rates: dict[torch.memory_format, list[float]] = {memory_format: [] for memory_format in _FORMATS}
    for turn in range(rounds):
        for memory_format in _FORMATS if turn % 2 else reversed(_FORMATS):
            with rig.renderer.laid_out(memory_format):
                began = time.perf_counter()
                _pngs(rig, requests)
                rates[memory_format].append(len(requests) / (time.perf_counter() - began))
    return rates


def _pngs(rig: Rig, requests: Sequence[RenderRequest]) -> list[bytes]:
    return [rig.store.read(done.artifact) for done in rig.render_all([again(request) for request in requests])]
