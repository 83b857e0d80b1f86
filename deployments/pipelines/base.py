"""What a model family is: its defaults, and how its pipelines are loaded, sized and called."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from deployments.errors import ModelUnusable
from deployments.pipelines.prompts import TokenLimit, pipeline_token_limit
from deployments.render import RenderRequest

if TYPE_CHECKING:
    import torch

Pipeline = Any
"""A diffusers pipeline. The library is untyped for us: everything we touch of it is behind `Family`."""

Config = Mapping[str, Any]
"""A component's `config.json` as diffusers writes it; empty where it could not be read."""

CHECKED_MULTIPLE = 8
"""Pipelines refuse sizes that are no multiple of 8, whatever their autoencoder's real factor is."""


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """What an adapter must fit. `denoiser` is the pipeline's component; None: not known before the model is loaded."""

    denoiser: str | None = None
    cross_attention_dim: int | None = None
    inner_dim: int | None = None


@dataclass(frozen=True, slots=True)
class PipelineCall:
    """Keyword arguments for one call of a pipeline, and what the client should know about them."""

    arguments: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())


class Family:
    """Any text-to-image pipeline of diffusers; the known families override what they know better.

    The configs given to the light methods are those of the folder's components, keyed by component name.
    """

    name: ClassVar[str] = "generic"
    pipeline_classes: ClassVar[tuple[str, ...]] = ()
    gpu_dtype: ClassVar[str] = "bfloat16"
    default_steps: ClassVar[int] = 28
    default_guidance: ClassVar[float] = 5.0
    prompt_tokens: ClassVar[int | None] = None

    def defaults(self, configs: Mapping[str, Config]) -> tuple[int, float]:  # noqa: ARG002
        """Return default denoising steps and guidance scale for a model with these component configs."""
        return self.default_steps, self.default_guidance

    def known_size_factor(self, configs: Mapping[str, Config]) -> int | None:  # noqa: ARG002
        """Return the multiple that rendered sizes must have, if the configs tell it, in pixels."""
        return None

    def adapter_target(self, configs: Mapping[str, Config]) -> AdapterTarget:
        """Return what adapters for a model with these component configs must fit."""
        for denoiser in ("transformer", "unet"):
            if denoiser in configs:
                return AdapterTarget(denoiser, **_widths(configs[denoiser]))
        return AdapterTarget()

    def load(self, source: str, revision: str | None, dtype: "torch.dtype") -> Pipeline:
        """Load a hub id or a local folder in one dtype, onto the CPU. Raises what diffusers raises."""
        from diffusers import AutoPipelineForText2Image  # noqa: PLC0415

        return AutoPipelineForText2Image.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)

    def check(self, pipeline: Pipeline) -> None:
        """Raise ModelUnusable if `pipeline` cannot be stopped between steps."""
        if "callback_on_step_end" not in inspect.signature(pipeline.__call__).parameters:
            raise ModelUnusable(
                f"{type(pipeline).__name__} has no callback_on_step_end: its jobs could be neither cancelled nor "
                "timed out. Use a pipeline that has one."
            )

    def size_factor(self, pipeline: Pipeline) -> int:
        """Return the multiple, in pixels, below which `pipeline` would silently shrink the picture."""
        latent = int(getattr(pipeline, "vae_scale_factor", CHECKED_MULTIPLE))
        transformer = getattr(pipeline, "transformer", None)
        patch = getattr(getattr(transformer, "config", None), "patch_size", 1) or 1
        if transformer is not None and isinstance(patch, int):
            latent *= max(2, patch)
        return math.lcm(CHECKED_MULTIPLE, latent)

    def token_limit(self, pipeline: Pipeline) -> TokenLimit | None:
        """Return the tokenizer whose limit cuts the prompt, and that limit in tokens; None if there is none."""
        return pipeline_token_limit(pipeline)

    def call(self, pipeline: Pipeline, request: RenderRequest) -> PipelineCall:
        """Return the arguments that are this family's own: prompt, negative prompt and guidance."""
        accepted = inspect.signature(pipeline.__call__).parameters
        arguments: dict[str, Any] = {"prompt": request.prompt}
        warnings: list[str] = []
        if "guidance_scale" in accepted:
            arguments["guidance_scale"] = request.guidance_scale
        elif "true_cfg_scale" in accepted:
            arguments["true_cfg_scale"] = request.guidance_scale
        if request.negative_prompt and "negative_prompt" in accepted:
            arguments["negative_prompt"] = request.negative_prompt
        elif request.negative_prompt:
            warnings.append("negative_prompt: this model has none; it had no effect.")
        return PipelineCall(arguments, tuple(warnings))


def guided_call(request: RenderRequest) -> PipelineCall:
    """Return the call of a pipeline with classifier-free guidance, which a scale of 1 or less switches off."""
    arguments: dict[str, Any] = {"prompt": request.prompt, "guidance_scale": request.guidance_scale}
    if not request.negative_prompt:
        return PipelineCall(arguments)
    arguments["negative_prompt"] = request.negative_prompt
    if request.guidance_scale > 1:
        return PipelineCall(arguments)
    return PipelineCall(arguments, ("negative_prompt: it had no effect, because guidance_scale is not above 1.",))


def autoencoder_factor(configs: Mapping[str, Config]) -> int | None:
    """Return pixels per latent of the `vae` config: each of its blocks but the last halves the size."""
    blocks = configs.get("vae", {}).get("block_out_channels")
    return 2 ** (len(blocks) - 1) if blocks else None


def _widths(config: Config) -> dict[str, int | None]:
    cross = config.get("cross_attention_dim")
    heads, head = config.get("num_attention_heads"), config.get("attention_head_dim")
    inner = heads * head if isinstance(heads, int) and isinstance(head, int) else None
    return {"cross_attention_dim": cross if isinstance(cross, int) else None, "inner_dim": inner}
