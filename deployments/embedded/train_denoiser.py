"""Trains the denoiser on the straight path between noise and picture (flow matching), on latents drawn directly.

The encoder is an area average, so latents of a 512 x 512 picture come from a drawing of 96 x 96 pixels: a new
picture for every sample costs a tenth of what the network costs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from deployments.embedded import captions, drawing
from deployments.embedded.architecture import FLOW_SHIFT, REDUCTION, build_tokenizer, build_unet
from deployments.embedded.autoencoder import to_latent
from deployments.embedded.checkpoints import Checkpoint, randomness, step_seed
from deployments.embedded.muon import Muon
from deployments.embedded.progress import Progress
from deployments.embedded.scenes import Scene
from deployments.embedded.stage import device, finite, precision, run_steps
from deployments.embedded.train_text import tokenise

STAGE = "denoiser"

SIZES: tuple[tuple[tuple[int, int], float], ...] = (
    ((512, 512), 0.34),
    ((1024, 1024), 0.40),
    ((768, 768), 0.06),
    ((768, 1024), 0.07),
    ((1024, 768), 0.05),
    ((512, 768), 0.02),
    ((768, 512), 0.02),
    ((256, 256), 0.04),
)
"""Width and height of the pictures, and the part of the steps that trains on them.

A step has four times as many pictures of 512 x 512 as of 1024 x 1024: they teach which word belongs to which thing.
"""

EARLY_SIZES: tuple[tuple[tuple[int, int], float], ...] = (
    ((256, 256), 0.40),
    ((512, 512), 0.50),
    ((384, 512), 0.05),
    ((512, 384), 0.05),
)
"""Sizes at the beginning: what colour words, places and shapes are is learnt from many small pictures."""

SAMPLES_PER_LATENT = 3
"""Drawn pixels per side of a latent."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Length and size of the training."""

    steps: int = 20000
    latents: int = 48 * 1024
    """Latents of a step: 48 pictures of 512 x 512, or 12 of 1024 x 1024."""
    pairs: float = 0.5
    """Part of the scenes with two things: harder than single ones, so more of them than the grammar has."""
    muon_rate: float = 0.02
    adam_rate: float = 1e-3
    rate: float = 1.0
    """Factor on both: less than 1 where the training goes on from trained weights."""
    warm_up: int = 50
    decay_from: float = 0.2
    """Part of the steps after which the learning rate falls in a straight line to a fiftieth."""
    average: float = 0.998
    """Decay of the running average of the weights, which is what is exported."""
    seed: int = 1
    sizes: tuple[tuple[tuple[int, int], float], ...] = SIZES
    early_sizes: tuple[tuple[tuple[int, int], float], ...] = EARLY_SIZES
    early_steps: int = 900
    bfloat16: bool = False
    """Multiply in bfloat16: half of the time, where the hardware has it."""
    save_every_s: float = 180.0


def schedule(plan: Plan, step: int) -> float:
    """Factor on the peak learning rates: warm-up, plateau, straight fall to a fiftieth."""
    warm = min(1.0, (step + 1) / plan.warm_up)
    fall = (step / plan.steps - plan.decay_from) / (1.0 - plan.decay_from)
    return plan.rate * warm * (1.0 - 0.98 * max(0.0, min(1.0, fall)))


def build_optimizers(plan: Plan, unet: UNet2DConditionModel) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices and kernels inside, AdamW for vectors and for the layers at the ends."""
    ends = ("conv_in", "conv_out", "time_embedding")
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in unet.named_parameters():
        if weight.requires_grad:
            (inner if weight.ndim >= 2 and not name.startswith(ends) else rest).append(weight)
    muon = Muon(inner, lr=plan.muon_rate)
    adam = torch.optim.AdamW(rest, lr=plan.adam_rate, betas=(0.9, 0.99), weight_decay=0.01)
    for optimizer, peak in ((muon, plan.muon_rate), (adam, plan.adam_rate)):
        for group in optimizer.param_groups:
            group["peak"] = peak
    return muon, adam


def latents_of(
    scenes: Sequence[Scene], width: int, height: int, generator: Generator, style: drawing.Style = "painted"
) -> Tensor:
    """Latents of new pictures of the scenes, (n, 3, height / 16, width / 16)."""
    layout = drawing.lay_out(scenes, width, height, generator)
    columns, rows = width // REDUCTION, height // REDUCTION
    fine = drawing.draw_picture(layout, columns * SAMPLES_PER_LATENT, rows * SAMPLES_PER_LATENT, style)
    return to_latent(functional.avg_pool2d(fine, SAMPLES_PER_LATENT))


def noise_shift(width: int, height: int) -> float:
    """How far training moves towards noise: what is where is decided at levels that rise with the number of latents
    that show it, so large pictures are trained with more noise than sampling spends on them.
    """
    return FLOW_SHIFT * math.pow(max(1.0, math.sqrt(width * height) / 512.0), 0.75)


def noise_levels(count: int, generator: Generator, shift: float = FLOW_SHIFT) -> Tensor:
    """Noise levels in 0..1, (count,), evenly spread over the levels that sampling with this shift visits."""
    offset = torch.rand(1, generator=generator)
    even = (torch.arange(count) + offset) / count
    even = even[torch.randperm(count, generator=generator)]
    return shift * even / (1.0 + (shift - 1.0) * even)


@dataclass(frozen=True, slots=True)
class Batch:
    """What the denoiser sees and what it should say."""

    noisy: Tensor
    timesteps: Tensor
    texts: tuple[str, ...]
    flow: Tensor


def batch_of(plan: Plan, step: int, style: drawing.Style = "painted") -> Batch:
    """The samples of one step, all of one picture size."""
    seed = step_seed(plan.seed, STAGE, step)
    random, generator = randomness(seed)
    sizes = plan.early_sizes if step < plan.early_steps else plan.sizes
    (width, height), _ = random.choices(sizes, [weight for _, weight in sizes])[0]
    count = max(2, plan.latents // ((width // REDUCTION) * (height // REDUCTION)))
    samples = [captions.sample(random, plan.pairs) for _ in range(count)]
    clean = latents_of([scene for scene, _ in samples], width, height, generator, style)
    level = noise_levels(count, generator, noise_shift(width, height))
    noise = torch.randn(clean.shape, generator=generator)
    share = level.view(-1, 1, 1, 1)
    return Batch(
        noisy=(1.0 - share) * clean + share * noise,
        timesteps=(level * 1000.0).long(),
        texts=tuple(said.text for _, said in samples),
        flow=noise - clean,
    )


def loss_of(
    plan: Plan,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: Batch,
) -> Tensor:
    """Mean squared error of the flow; the models are on the device of `stage.device`."""
    where = device()
    with torch.no_grad():
        words = text_encoder(tokenise(tokenizer, batch.texts).to(where))[0]
    noisy = batch.noisy.to(where).contiguous(memory_format=torch.channels_last)
    with precision(where, bfloat16=plan.bfloat16):
        flow = unet(noisy, batch.timesteps.to(where), words).sample
    return functional.mse_loss(flow.float(), batch.flow.to(where))


def prepare_unet() -> UNet2DConditionModel:
    """An untrained denoiser that starts by predicting zero and never hears of the guidance scale."""
    unet = build_unet()
    with torch.no_grad():
        for parameter in (unet.conv_out.weight, unet.conv_out.bias, unet.time_embedding.cond_proj.weight):
            parameter.zero_()
    unet.time_embedding.cond_proj.requires_grad_(False)
    return unet.to(memory_format=torch.channels_last)


def train(
    plan: Plan,
    text_encoder: CLIPTextModel,
    checkpoint: Checkpoint,
    progress: Progress,
    until: int | None = None,
) -> UNet2DConditionModel:
    """Trains, or goes on from the checkpoint, to step `until` of the plan; returns the averaged weights."""
    torch.manual_seed(plan.seed)
    where = device()
    tokenizer, unet = build_tokenizer(), prepare_unet().to(where).train()
    text_encoder = text_encoder.to(where)
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizers = build_optimizers(plan, unet)
    averaged = {name: value.clone() for name, value in unet.state_dict().items()}
    begin = 0
    if (state := checkpoint.load()) is not None:
        unet.load_state_dict(state["model"])
        averaged.update({name: value.to(where) for name, value in state["averaged"].items()})
        if "optimizers" in state:
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        begin = state["step"]

    def take_step(step: int) -> dict[str, float]:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(plan, step)
        batch = batch_of(plan, step)
        loss = loss_of(plan, unet, text_encoder, tokenizer, batch)
        unet.zero_grad(set_to_none=True)
        value = finite(loss, step)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        _average(averaged, unet, min(plan.average, (2.0 + step) / (11.0 + step)))
        return {"loss": value, "norm": norm.item()}

    run_steps(
        take_step,
        lambda: {
            "model": unet.state_dict(),
            "averaged": averaged,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        },
        begin=begin,
        steps=plan.steps,
        until=until,
        checkpoint=checkpoint,
        progress=progress,
        save_every_s=plan.save_every_s,
    )
    unet.load_state_dict(averaged)
    return unet.cpu().eval()


@torch.no_grad()
def _average(averaged: dict[str, Tensor], unet: UNet2DConditionModel, decay: float) -> None:
    values = unet.state_dict()
    torch._foreach_lerp_(list(averaged.values()), [values[name] for name in averaged], 1.0 - decay)
