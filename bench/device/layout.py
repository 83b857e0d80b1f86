"""Whether convolutions are faster with `channels_last`: the engine with each memory format in turn.

`ModelSettings.memory_format` is the setting. Each format is as deterministic as the other; the pictures differ by what
rounding does to sums in another order.
"""

import time
from collections.abc import Sequence

import torch

from bench.device.intervals import median_interval
from bench.device.pixels import Pixels, decode, distance, worst
from bench.device.requests import again, plain_requests
from bench.device.results import Layout, Results
from bench.device.rig import Rig
from bench.device.subjects import Subject
from deployments.render import RenderRequest
from deployments.torch_device import lay_out

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def measure_layout(results: Results, rig: Rig, subject: Subject, size: int, *, images: int, rounds: int) -> None:
    """Time `images` pictures with each format, `rounds` times in turn; leaves the pipeline as it was found.

    Raises JobLost if a job gets no picture.
    """
    requests = plain_requests(subject, size, images)
    components = list(rig.renderer.pipeline.components.values())
    found_as = _format_of(components)
    pictures: dict[str, list[Pixels]] = {}
    repeated: list[bool] = []
    for name, memory_format in _FORMATS.items():
        lay_out(components, memory_format)
        first, second = _bytes_of(rig, requests), _bytes_of(rig, requests)
        pictures[name] = [decode(png) for png in first]
        repeated.append(first == second)
    per_image: dict[str, list[float]] = {name: [] for name in _FORMATS}
    for turn in range(rounds):
        for name in list(_FORMATS) if turn % 2 else reversed(_FORMATS):
            lay_out(components, _FORMATS[name])
            began = time.perf_counter()
            _bytes_of(rig, requests)
            per_image[name].append((time.perf_counter() - began) / images)
    lay_out(components, found_as)
    contiguous, channels_last = (per_image[name] for name in _FORMATS)
    found = Layout(
        model=subject.label,
        size=size,
        steps=subject.steps,
        dtype=str(rig.renderer.pipeline.dtype).removeprefix("torch."),
        contiguous=median_interval([1 / one for one in contiguous]),
        channels_last=median_interval([1 / one for one in channels_last]),
        gain=median_interval([one / other for one, other in zip(contiguous, channels_last, strict=True)]),
        distance=worst(distance(one, other) for one, other in zip(*pictures.values(), strict=True)),
        repeatable=all(repeated),
    )
    results.layout.append(found)
    results.judge(
        "layout",
        f"{found.model} {size}",
        "passed" if found.repeatable else "failed",
        f"channels_last renders {found.gain:.2f} times as fast as contiguous; "
        + ("each repeats its bytes." if found.repeatable else "a request did not give the same bytes twice."),
    )


def _bytes_of(rig: Rig, requests: Sequence[RenderRequest]) -> list[bytes]:
    return [rig.store.read(done.artifact) for done in rig.render_all([again(request) for request in requests])]


def _format_of(components: Sequence[object]) -> torch.memory_format:
    """Return the format of the weights: of convolutions that show it, since a kernel of 1 x 1 lies in both ways."""
    for component in components:
        if isinstance(component, torch.nn.Module):
            for weight in component.parameters():
                if weight.dim() == 4 and not weight.is_contiguous():
                    return torch.channels_last
    return torch.contiguous_format
