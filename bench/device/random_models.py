"""SDXL and Flux.1 dev with random weights: what a picture costs does not depend on what the weights know.

The shapes are those of the published models (the `config.json` files of stable-diffusion-xl-base-1.0 and FLUX.1-dev);
the tiny ones are small enough for a test. Tokenizers know letters only: the encoders always see full length.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from deployments.pipelines.base import Pipeline
from deployments.pipelines.flux import Flux
from deployments.pipelines.sdxl import StableDiffusionXL

Scale = Literal["real", "tiny"]
Shape = dict[str, Any]

_SDXL_UNET: dict[Scale, Shape] = {
    "real": {
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "tiny": {
        "block_out_channels": (8, 16, 16),
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 1, 1),
        "norm_num_groups": 4,
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    },
}
_FLUX_TRANSFORMER: dict[Scale, Shape] = {
    "real": {},  # the class's own defaults
    "tiny": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
}
_CLIP_L: dict[Scale, Shape] = {
    "real": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"projection_dim": 768, "vocab_size": 49408},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"projection_dim": 32, "vocab_size": 600},
}
_CLIP_BIG_G: dict[Scale, Shape] = {
    "real": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    | {"projection_dim": 1280, "vocab_size": 49408, "hidden_act": "gelu"},
    "tiny": _CLIP_L["tiny"],
}
_T5: dict[Scale, Shape] = {
    "real": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128},
    "tiny": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 64},
}
_VAE: dict[Scale, Shape] = {
    "real": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
    "tiny": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
}


class RandomSdxl(StableDiffusionXL):
    """SDXL that needs no files: `load` makes the weights up, on the device itself."""

    name: ClassVar[str] = "random-sdxl"
    pipeline_classes: ClassVar[tuple[str, ...]] = ("RandomSdxl",)

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self._scale: Scale = scale
        self._device = device

    def load(self, source: str, revision: str | None, dtype: torch.dtype) -> Pipeline:  # noqa: ARG002
        """See `Family`."""
        scale = self._scale
        with _born(dtype, self._device):
            models = {
                "vae": _vae(scale, latent_channels=4, scaling_factor=0.13025),
                "text_encoder": CLIPTextModel(_clip(_CLIP_L[scale])),
                "text_encoder_2": CLIPTextModelWithProjection(_clip(_CLIP_BIG_G[scale])),
                "unet": UNet2DConditionModel(
                    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    addition_embed_type="text_time",
                    use_linear_projection=True,
                    sample_size=128,
                    **_SDXL_UNET[scale],
                ),
            }
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        )
        return StableDiffusionXLPipeline(
            **_resting(models),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_clip_tokenizer(),
            scheduler=scheduler,
            add_watermarker=False,
        )


class RandomFlux(Flux):
    """Flux.1 dev that needs no files: `load` makes the weights up, on the device itself."""

    name: ClassVar[str] = "random-flux"
    pipeline_classes: ClassVar[tuple[str, ...]] = ("RandomFlux",)

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self._scale: Scale = scale
        self._device = device

    def load(self, source: str, revision: str | None, dtype: torch.dtype) -> Pipeline:  # noqa: ARG002
        """See `Family`."""
        scale = self._scale
        latent_channels = _FLUX_TRANSFORMER[scale].get("in_channels", 64) // 4
        with _born(dtype, self._device):
            models = {
                "vae": _vae(
                    scale,
                    latent_channels=latent_channels,
                    scaling_factor=0.3611,
                    shift_factor=0.1159,
                    use_quant_conv=False,
                    use_post_quant_conv=False,
                ),
                "text_encoder": CLIPTextModel(_clip(_CLIP_L[scale])),
                "text_encoder_2": T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **_T5[scale])),
                "transformer": FluxTransformer2DModel(guidance_embeds=True, **_FLUX_TRANSFORMER[scale]),
            }
        return FluxPipeline(
            **_resting(models),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_t5_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )


@contextlib.contextmanager
def _born(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let modules made inside have `dtype` and lie on `device`: 12 billion weights never pass through host memory."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _resting(models: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """Return the models as `from_pretrained` would: in evaluation mode."""
    return {name: model.eval() for name, model in models.items()}


def _vae(scale: Scale, **shape: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=1024,
        **_VAE[scale],
        **shape,
    )


def _clip(shape: Shape) -> CLIPTextConfig:
    return CLIPTextConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1, **shape)


def _clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *letters], extra_ids=0, model_max_length=512
    )
