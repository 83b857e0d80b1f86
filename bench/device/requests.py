"""The requests that the checks send."""

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import replace

from bench.device.rig import JOB_TIMEOUT_S
from bench.device.subjects import Subject
from deployments.render import RenderRequest

_PROMPTS = (
    "a red circle on a blue background",
    "a small yellow star, green background",
    "a large striped heart at the top on a white background",
    "a red circle left of a blue square on a pink background",
    "an orange ring above a purple cross",
)
_GRANULE = 8  # pixels: every family renders multiples of it, cropped where its own factor is larger


def plain_requests(subject: Subject, size: int, count: int, first_seed: int = 0) -> list[RenderRequest]:
    """Return `count` requests that differ in prompt and seed alone, of `size` x `size` pixels."""
    return [
        RenderRequest(
            job_id=f"{subject.name}-{seed}",
            artifact_key=_new_key(),
            prompt=_PROMPTS[seed % len(_PROMPTS)],
            width=size,
            height=size,
            num_inference_steps=subject.steps,
            guidance_scale=subject.guidance,
            seed=seed,
            timeout_s=JOB_TIMEOUT_S,
        )
        for seed in range(first_seed, first_seed + count)
    ]


def mixed_requests(subject: Subject, size: int, count: int, adapters: Sequence[str]) -> list[RenderRequest]:
    """Return `count` different requests of up to `size` x `size` pixels, with and without what a request may carry."""
    half = max(_GRANULE, size // 2 // _GRANULE * _GRANULE)
    sizes = itertools.cycle([(size, size), (half, size), (size - 3, half + 5)])
    adapter_names: itertools.cycle[str | None] = itertools.cycle([None, None, *adapters])
    return [
        replace(
            request,
            width=width,
            height=height,
            num_inference_steps=request.num_inference_steps + request.seed % 2,
            negative_prompt="rain" if request.seed % 4 == 3 else None,
            adapter=next(adapter_names),
        )
        for request, (width, height) in zip(plain_requests(subject, size, count), sizes, strict=False)
    ]


def again(request: RenderRequest) -> RenderRequest:
    """Return the same request as another attempt: published under a key of its own."""
    return replace(request, artifact_key=_new_key())


def _new_key() -> str:
    return f"bench/{uuid.uuid4().hex}.png"
