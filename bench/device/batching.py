"""Where batching stops paying: batches of several sizes in the bare loop.

The engine renders one picture at a time. The table says what batches would bring it on this device, and how far a
batched picture is from the one that is rendered alone.
"""

import time
from collections.abc import Sequence

import torch

from bench.device.bare import BareLoop
from bench.device.intervals import median_interval
from bench.device.pixels import distance, worst
from bench.device.requests import plain_requests
from bench.device.results import Batching, BatchRow, Distance, Results, name_of
from bench.device.rig import Rig
from bench.device.subjects import Subject
from deployments.render import RenderRequest
from deployments.torch_device import free_memory, is_out_of_memory

_PAYS = 1.05
"""A larger batch pays if it makes at least this many times the images/s of the smaller one that paid last."""


def measure_batching(
    results: Results, rig: Rig, subject: Subject, size: int, *, batches: Sequence[int], rounds: int
) -> None:
    """Time each batch size `rounds` times, in turn, and add the table; sizes that exceed the memory end it."""
    bare, device = BareLoop(rig), rig.renderer.torch_device
    requests = plain_requests(subject, size, max(batches))
    fitting, apart, memory = _try_all(bare, device, requests, sorted({1, *batches}))
    per_image: dict[int, list[float]] = {batch: [] for batch in fitting}
    for turn in range(rounds):
        for batch in fitting if turn % 2 else reversed(fitting):
            began = time.perf_counter()
            bare.make_batches(requests[:batch], batch)
            per_image[batch].append((time.perf_counter() - began) / batch)
    rows = tuple(
        BatchRow(
            batch=batch,
            images_per_s=median_interval([1 / one for one in per_image[batch]]),
            gain=median_interval([alone / one for alone, one in zip(per_image[1], per_image[batch], strict=True)]),
            distance_to_alone=apart[batch],
            peak_memory_bytes=memory[batch],
        )
        for batch in fitting
    )
    found = Batching(
        subject.label,
        size,
        subject.steps,
        name_of(rig.renderer.pipeline.dtype),
        name_of(rig.renderer.memory_format),
        rows,
        _paying(rows),
    )
    results.batching.append(found)
    left_out = sorted(set(batches) - set(fitting))
    results.judge(
        "batching",
        f"{found.model} {size}",
        "passed",
        f"pays up to {found.pays_up_to} of {fitting[-1]} tried"
        + (f"; {left_out[0]} exceeds the device's memory." if left_out else "."),
    )


def _try_all(
    bare: BareLoop, device: torch.device, requests: Sequence[RenderRequest], batches: Sequence[int]
) -> tuple[list[int], dict[int, Distance], dict[int, int | None]]:
    """Render each batch once; return the sizes that fit, their distance from pictures alone, and their peak memory."""
    alone = [bare.pixels([request])[0] for request in requests]
    fitting: list[int] = []
    apart: dict[int, Distance] = {}
    memory: dict[int, int | None] = {}
    cuda = device.type == "cuda"
    for batch in batches:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            together = bare.pixels(requests[:batch])
        except Exception as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
            free_memory(error)
            break
        fitting.append(batch)
        apart[batch] = worst(distance(one, other) for one, other in zip(alone, together, strict=False))
        memory[batch] = torch.cuda.max_memory_allocated(device) if cuda else None
    return fitting, apart, memory


def _paying(rows: Sequence[BatchRow]) -> int:
    best = rows[0]
    for row in rows[1:]:
        if row.images_per_s.median >= _PAYS * best.images_per_s.median:
            best = row
    return best.batch
