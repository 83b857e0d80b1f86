"""Pipelines of the real classes with random weights, a few hundred kilobytes each, saved as ordinary folders."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
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

SD_CROSS_DIM = 32
SDXL_CROSS_DIM = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """One token per byte, at the end of a word or not, and one merge: enough for any text."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{c}</w>" for c in alphabet), "ca"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[("c", "a")], model_max_length=max_length
    )


def clip_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def vae(blocks: int, channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[8] * blocks,
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        shift_factor=0.1,
    )


def save_stable_diffusion(folder: Path, vae_blocks: int = 4) -> None:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    StableDiffusionPipeline(
        vae=vae(vae_blocks),
        text_encoder=CLIPTextModel(clip_config(tokenizer, SD_CROSS_DIM)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=SD_CROSS_DIM,
            attention_head_dim=4,
        ),
        # A multi-step scheduler: it remembers predictions, which the next job must not see.
        scheduler=DPMSolverMultistepScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_sdxl(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=CLIPTextModel(clip_config(tokenizer, 32)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, 32)),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=SDXL_CROSS_DIM,
        ),
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)


def save_flux(folder: Path, *, guidance: bool = True) -> None:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    tokenizer_2 = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, channels=1),
        text_encoder=CLIPTextModel(clip_config(tokenizer, 32)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        ),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance,
        ),
    ).save_pretrained(folder)


def save_unet_adapter(path: Path, cross_dim: int = SD_CROSS_DIM, rank: int = 4, seed: int = 1) -> None:
    """An adapter in diffusers' format for the tiny Stable Diffusion, strong enough to change the picture."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in ("down_blocks.1", "up_blocks.0"):
        layer = f"unet.{block}.attentions.0.transformer_blocks.0.attn2.to_k"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, cross_dim, generator=random)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(16, rank, generator=random)
    save_file(tensors, path)


def save_text_encoder_adapter(path: Path) -> None:
    """An adapter in kohya's format that changes the text encoder alone."""
    random = torch.Generator().manual_seed(7)
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    save_file(
        {
            f"{layer}.lora_down.weight": torch.randn(4, 32, generator=random),
            f"{layer}.lora_up.weight": torch.randn(37, 4, generator=random),
            f"{layer}.alpha": torch.tensor(4.0),
        },
        path,
    )
