"""Trains an adapter: low-rank changes to the denoiser that draw everything in another style."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextModel

from deployments.embedded import train_denoiser
from deployments.embedded.architecture import build_tokenizer
from deployments.embedded.drawing import Style
from deployments.embedded.progress import Progress
from deployments.embedded.stage import device

RANK = 4
TARGETS = (
    r".*\.(conv1|conv2|conv_shortcut|to_q|to_k|to_v|to_out\.0|proj_in|proj_out)|.*samplers\.0\.conv"
    r"|.*time_emb_proj|conv_in|conv_out"
)
"""Layers that the adapter changes, as a regular expression over the denoiser's module names."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Length and size of the training."""

    steps: int = 800
    learning_rate: float = 2e-3
    warm_up: int = 20
    latents: int = 16 * 1024
    seed: int = 1
    bfloat16: bool = False
    sizes: tuple[tuple[tuple[int, int], float], ...] = train_denoiser.SIZES


def train(
    plan: Plan, style: Style, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, progress: Progress
) -> None:
    """Adds an adapter to the trained denoiser and trains it; the denoiser's own weights stay."""
    torch.manual_seed(plan.seed)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights="gaussian"))
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=plan.learning_rate, betas=(0.9, 0.99))
    base = train_denoiser.Plan(
        latents=plan.latents, seed=plan.seed + 1000, sizes=plan.sizes, early_steps=0, bfloat16=plan.bfloat16
    )
    tokenizer, where = build_tokenizer(), device()
    text_encoder = text_encoder.to(where)
    unet.to(where).train()
    for step in range(plan.steps):
        rate = min(1.0, (step + 1) / plan.warm_up) * (1.0 - 0.95 * step / plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate
        batch = train_denoiser.batch_of(base, step, style)
        loss = train_denoiser.loss_of(base, unet, text_encoder, tokenizer, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        progress.report(step + 1, plan.steps, loss=loss.item())
    unet.cpu().eval()


def save(unet: UNet2DConditionModel, style: Style, folder: Path) -> Path:
    """Writes the adapter as `<style>.safetensors` in the usual diffusers format and returns the path."""
    layers = {name: value.half().contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    name = f"{style}.safetensors"
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=name)
    return folder / name
