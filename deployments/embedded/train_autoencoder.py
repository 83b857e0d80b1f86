"""Trains the decoder to draw sharp pictures from area averages. The encoder is exact from the start and stays."""

import math
from dataclasses import dataclass
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional

from deployments.embedded import captions, drawing
from deployments.embedded.architecture import REDUCTION
from deployments.embedded.autoencoder import balance, build_vae, drop_reserved_gradients, to_latent, trainable
from deployments.embedded.checkpoints import Checkpoint, randomness, step_seed
from deployments.embedded.progress import Progress
from deployments.embedded.stage import finite, run_steps

STAGE = "autoencoder"
SIDES = (512, 640, 768, 1024, 1024)
"""Sizes of the pictures that crops are taken from."""
MOST_NOISE = 0.12
"""Standard deviation of the noise on latents in training, at most: the decoder learns to draw straight edges from the
slightly wrong latents that a denoiser leaves."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Length and size of the training."""

    steps: int = 3000
    batch: int = 8
    crop: int = 192
    """Side of a crop in pixels, a multiple of 16."""
    learning_rate: float = 8e-4
    warm_up: int = 40
    seed: int = 1
    save_every_s: float = 180.0


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then half a cosine to 2 % of the peak."""
    if step < plan.warm_up:
        return plan.learning_rate * (step + 1) / plan.warm_up
    done = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return plan.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def crops(plan: Plan, step: int) -> Tensor:
    """Windows of new pictures around their things' edges: sRGB in 0..1, (batch, 3, crop, crop)."""
    seed = step_seed(plan.seed, STAGE, step)
    random, generator = randomness(seed)
    side = random.choice([s for s in SIDES if s >= plan.crop])
    pictures = []
    for _ in range(plan.batch):
        layout = drawing.lay_out([captions.sample(random)[0]], side, side, generator)
        corner = _corner(layout, side, plan.crop, random)
        pictures.append(drawing.draw_window(layout, side, side, corner, (plan.crop, plan.crop)))
    return torch.cat(pictures)


def _corner(layout: drawing.Layout, side: int, crop: int, random: Random) -> tuple[int, int]:
    """Three crops in four are about the rim of a thing, the others anywhere."""
    if random.random() < 0.25:
        return random.randint(0, side - crop), random.randint(0, side - crop)
    index = random.randrange(int((layout.shape[0] >= 0).sum()))
    turn, reach = (
        random.uniform(0.0, 2.0 * math.pi),
        random.uniform(0.2, 1.1) * float(layout.radius[0, index]),
    )
    x = (float(layout.centre[0, index, 0]) + reach * math.cos(turn)) * side - crop / 2
    y = (float(layout.centre[0, index, 1]) + reach * math.sin(turn)) * side - crop / 2
    return min(max(0, round(x)), side - crop), min(max(0, round(y)), side - crop)


def loss_of(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error per pixel, and the error of the averages, which is what carries the colours."""
    wrong = decoded - pictures
    averages = functional.avg_pool2d(wrong, REDUCTION)
    return wrong.abs().mean() + 8.0 * wrong.square().mean() + averages.abs().mean()


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return -10.0 * math.log10(float((a.clamp(0, 1) - b.clamp(0, 1)).square().mean()))


@torch.no_grad()
def measure(vae: AutoencoderKL, *, side: int = 1024, count: int = 4, seed: int = 987_654) -> float:
    """Mean PSNR in dB of whole new pictures through encoder and decoder."""
    random, generator = randomness(seed)
    total = 0.0
    for _ in range(count):
        layout = drawing.lay_out([captions.sample(random)[0]], side, side, generator)
        picture = drawing.draw_picture(layout, side, side)
        decoded = vae.decode(vae.encode(picture * 2.0 - 1.0).latent_dist.mode()).sample
        total += psnr(decoded * 0.5 + 0.5, picture)
    return total / count


def train(plan: Plan, checkpoint: Checkpoint, progress: Progress, until: int | None = None) -> AutoencoderKL:
    """Trains, or goes on from the checkpoint, to step `until` of the plan, and returns the autoencoder."""
    torch.manual_seed(plan.seed)
    vae = build_vae()
    weights = trainable(vae)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(weights, lr=plan.learning_rate, betas=(0.9, 0.98))
    begin = 0
    if (state := checkpoint.load()) is not None:
        vae.load_state_dict(state["model"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]

    def take_step(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        pictures = crops(plan, step).contiguous(memory_format=torch.channels_last)
        latents = to_latent(functional.avg_pool2d(pictures, REDUCTION))
        generator = Generator().manual_seed(step_seed(plan.seed, f"{STAGE} noise", step))
        strength = MOST_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator).square()
        latents = latents + strength * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents).sample * 0.5 + 0.5
        loss = loss_of(decoded, pictures)
        optimizer.zero_grad(set_to_none=True)
        value = finite(loss, step)
        loss.backward()  # type: ignore[no-untyped-call]
        drop_reserved_gradients(vae)
        norm = torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        balance(vae)
        return {"loss": value, "psnr": psnr(decoded.detach(), pictures), "norm": norm.item()}

    run_steps(
        take_step,
        lambda: {"model": vae.state_dict(), "optimizer": optimizer.state_dict()},
        begin=begin,
        steps=plan.steps,
        until=until,
        checkpoint=checkpoint,
        progress=progress,
        save_every_s=plan.save_every_s,
    )
    return vae.eval()
