"""Stable Diffusion XL."""

from typing import TYPE_CHECKING, ClassVar

from deployments.pipelines.base import Pipeline
from deployments.pipelines.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    import torch


class StableDiffusionXL(StableDiffusion):
    """A U-Net with two CLIP text encoders and size conditioning."""

    name: ClassVar[str] = "sdxl"
    pipeline_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    default_guidance: ClassVar[float] = 5.0

    def load(self, source: str, revision: str | None, dtype: "torch.dtype") -> Pipeline:
        """See `Family`. The invisible watermark is off: it would need another package and change the bytes."""
        from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415

        return StableDiffusionXLPipeline.from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, add_watermarker=False
        )
