"""Flux.1: a transformer over packed latents, with guidance distilled into it (dev) or without any (schnell)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from deployments.pipelines.base import Config, Family, Pipeline, PipelineCall, autoencoder_factor
from deployments.pipelines.prompts import TokenLimit
from deployments.render import RenderRequest

if TYPE_CHECKING:
    import torch

NEGATIVE_PROMPT_SCALE = 2.0
"""Classifier-free scale of a negative prompt where `guidance_scale` is the distilled one and cannot carry it."""

_SCHNELL_STEPS = 4
_SCHNELL_TOKENS = 256  # the length schnell was trained with (its model card)
_DEV_TOKENS = 512


class Flux(Family):
    """Its latents are packed in 2x2 patches, so its real size factor is twice the autoencoder's."""

    name: ClassVar[str] = "flux"
    pipeline_classes: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    default_guidance: ClassVar[float] = 3.5
    prompt_tokens: ClassVar[int | None] = _DEV_TOKENS

    def defaults(self, configs: Mapping[str, Config]) -> tuple[int, float]:
        """See `Family`: a model without guidance embedding is distilled for four steps."""
        if configs.get("transformer", {}).get("guidance_embeds", True):
            return self.default_steps, self.default_guidance
        return _SCHNELL_STEPS, 0.0

    def known_size_factor(self, configs: Mapping[str, Config]) -> int | None:
        """See `Family`."""
        factor = autoencoder_factor(configs)
        return None if factor is None else 2 * factor

    def load(self, source: str, revision: str | None, dtype: "torch.dtype") -> Pipeline:
        """See `Family`."""
        from diffusers import FluxPipeline  # noqa: PLC0415

        return FluxPipeline.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)

    def size_factor(self, pipeline: Pipeline) -> int:
        """See `Family`. Flux only warns of other sizes, so a multiple of 8 is not needed beside it."""
        return 2 * int(pipeline.vae_scale_factor)

    def token_limit(self, pipeline: Pipeline) -> TokenLimit | None:
        """See `Family`: the T5 encoder reads the words; CLIP, cut at 77, adds one pooled vector only."""
        return TokenLimit(pipeline.tokenizer_2, _tokens(pipeline))

    def call(self, pipeline: Pipeline, request: RenderRequest) -> PipelineCall:
        """See `Family`: a negative prompt needs a second pass, at `true_cfg_scale`."""
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "guidance_scale": request.guidance_scale,
            "max_sequence_length": _tokens(pipeline),
        }
        if not request.negative_prompt:
            return PipelineCall(arguments)
        scale = NEGATIVE_PROMPT_SCALE if _has_guidance(pipeline) else request.guidance_scale
        if scale <= 1:
            return PipelineCall(
                arguments, ("negative_prompt: it had no effect, because guidance_scale is not above 1.",)
            )
        arguments |= {"negative_prompt": request.negative_prompt, "true_cfg_scale": scale}
        return PipelineCall(
            arguments, (f"negative_prompt: applied at scale {scale:g}; with this model it doubles the time.",)
        )


def _has_guidance(pipeline: Pipeline) -> bool:
    return bool(pipeline.transformer.config.guidance_embeds)


def _tokens(pipeline: Pipeline) -> int:
    return _DEV_TOKENS if _has_guidance(pipeline) else _SCHNELL_TOKENS
