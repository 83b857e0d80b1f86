"""Stable Diffusion 1.x and 2.x."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from deployments.pipelines.base import (
    CHECKED_MULTIPLE,
    Config,
    Family,
    Pipeline,
    PipelineCall,
    autoencoder_factor,
    guided_call,
)
from deployments.render import RenderRequest

if TYPE_CHECKING:
    import torch


class StableDiffusion(Family):
    """A U-Net with one CLIP text encoder."""

    name: ClassVar[str] = "stable_diffusion"
    pipeline_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    gpu_dtype: ClassVar[str] = "float16"
    default_guidance: ClassVar[float] = 7.0
    prompt_tokens: ClassVar[int | None] = 77

    def known_size_factor(self, configs: Mapping[str, Config]) -> int | None:
        """See `Family`."""
        factor = autoencoder_factor(configs)
        return None if factor is None else math.lcm(CHECKED_MULTIPLE, factor)

    def load(self, source: str, revision: str | None, dtype: "torch.dtype") -> Pipeline:
        """See `Family`."""
        from diffusers import StableDiffusionPipeline  # noqa: PLC0415

        return StableDiffusionPipeline.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)

    def call(self, pipeline: Pipeline, request: RenderRequest) -> PipelineCall:  # noqa: ARG002
        """See `Family`."""
        return guided_call(request)
