"""Trains the embedded model in stages, each resumable: `python -m deployments.embedded.train STAGE`.

Stages: autoencoder, text, denoiser (needs the text encoder), export (writes the model folder), adapter.
State is kept in `.darkroom/training/`; a stage that is killed goes on from its last checkpoint.

On a CPU that others use too, set `OMP_WAIT_POLICY=passive`, and `MALLOC_MMAP_MAX_=0` with a large
`MALLOC_TRIM_THRESHOLD_`: threads that spin for each other and fresh memory for every step cost half of the time.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from diffusers import DiffusionPipeline
from torch import nn

from deployments.embedded import ADAPTER_FOLDER, train_adapter, train_autoencoder, train_denoiser, train_text
from deployments.embedded.architecture import assemble, build_text_encoder, build_unet, save
from deployments.embedded.autoencoder import build_vae
from deployments.embedded.checkpoints import Checkpoint
from deployments.embedded.progress import Progress

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

WORK = Path(".darkroom") / "training"
Folder = Annotated[Path, typer.Option("--work", help="Where the stages keep their state.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps in all; a larger number later goes on from there.")]
Bfloat16 = Annotated[bool, typer.Option(help="Multiply in bfloat16: half of the time, where the hardware has it.")]
Seed = Annotated[int, typer.Option(help="Fixes the pictures, captions, noise and starting weights.")]


@app.callback()
def stages() -> None:
    """Without a stage there is nothing to do."""


@app.command()
def autoencoder(steps: Steps = 3000, seed: Seed = 1, work: Folder = WORK, threads: Threads = 2) -> None:
    """Train the decoder to draw sharp edges."""
    torch.set_num_threads(threads)
    plan, stage = train_autoencoder.Plan(steps=steps, seed=seed), train_autoencoder.STAGE
    vae = train_autoencoder.train(plan, Checkpoint(work / f"{stage}.pt"), Progress(stage))
    typer.echo(f"PSNR of new pictures of 1024 x 1024: {train_autoencoder.measure(vae):.1f} dB")


@app.command()
def text(steps: Steps = 4000, seed: Seed = 1, work: Folder = WORK, threads: Threads = 2) -> None:
    """Teach the text encoder to read captions."""
    torch.set_num_threads(threads)
    plan, stage = train_text.Plan(steps=steps, seed=seed), train_text.STAGE
    encoder = train_text.train(plan, Checkpoint(work / f"{stage}.pt"), Progress(stage))
    typer.echo(f"new captions read without a fault: {train_text.measure(encoder):.1%}")


@app.command()
def denoiser(
    steps: Steps = 20000,
    early_steps: Annotated[int, typer.Option(help="First steps, which train on small pictures only.")] = 900,
    rate: Annotated[float, typer.Option(help="Factor on the learning rate; 0.5 to go on from trained weights.")] = 1.0,
    bfloat16: Bfloat16 = False,
    seed: Seed = 1,
    work: Folder = WORK,
    threads: Threads = 2,
) -> None:
    """Train the denoiser on captions and latents; needs the text encoder's checkpoint."""
    torch.set_num_threads(threads)
    encoder = build_text_encoder()
    _restore(encoder, work, train_text.STAGE)
    plan = train_denoiser.Plan(steps=steps, early_steps=early_steps, rate=rate, bfloat16=bfloat16, seed=seed)
    stage = train_denoiser.STAGE
    train_denoiser.train(plan, encoder, Checkpoint(work / f"{stage}.pt"), Progress(stage))


@app.command()
def adapter(
    style: Annotated[Literal["monochrome", "blueprint"], typer.Argument(help="What to teach.")],
    output: Annotated[Path, typer.Option(help="Folder to write the adapter to.")] = ADAPTER_FOLDER,
    steps: Steps = 800,
    bfloat16: Bfloat16 = False,
    seed: Seed = 1,
    work: Folder = WORK,
    threads: Threads = 2,
) -> None:
    """Train an adapter on the trained denoiser; takes minutes and does not resume."""
    torch.set_num_threads(threads)
    encoder, unet = build_text_encoder(), build_unet()
    _restore(encoder, work, train_text.STAGE)
    _restore(unet, work, train_denoiser.STAGE, "averaged")
    plan = train_adapter.Plan(steps=steps, bfloat16=bfloat16, seed=seed)
    train_adapter.train(plan, style, unet, encoder, Progress(style))
    typer.echo(f"wrote {train_adapter.save(unet, style, output)}")


@app.command()
def export(output: Annotated[Path, typer.Argument(help="Model folder to write.")], work: Folder = WORK) -> None:
    """Write what is trained so far as a model folder; parts that are not trained yet are left untrained."""
    torch.manual_seed(0)
    vae, unet, encoder = build_vae(), build_unet(), build_text_encoder()
    for part, stage, key in (
        (vae, train_autoencoder.STAGE, "model"),
        (unet, train_denoiser.STAGE, "averaged"),
        (encoder, train_text.STAGE, "model"),
    ):
        if (work / f"{stage}.pt").exists():
            _restore(part, work, stage, key)
    save(assemble(vae, unet, encoder), output)


@app.command()
def begin(model: Annotated[Path, typer.Argument(help="Model folder to start from.")], work: Folder = WORK) -> None:
    """Start from a model folder where the training state is lost: every stage goes on at step 0 with its weights."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    for part, stage in (
        (pipeline.vae, train_autoencoder.STAGE),
        (pipeline.text_encoder, train_text.STAGE),
        (pipeline.unet, train_denoiser.STAGE),
    ):
        checkpoint = Checkpoint(work / f"{stage}.pt")
        if checkpoint.path.exists():
            raise typer.BadParameter(f"{checkpoint.path} exists; move it away first")
        weights = part.state_dict()
        checkpoint.save({"model": weights, "averaged": weights, "step": 0})


def _restore(part: nn.Module, work: Path, stage: str, key: str = "model") -> None:
    """Loads the weights of a stage. Raises typer.BadParameter if the stage has no checkpoint."""
    state = Checkpoint(work / f"{stage}.pt").load()
    if state is None:
        raise typer.BadParameter(f"stage {stage!r} has no checkpoint in {work}; train it first")
    part.load_state_dict(state[key])


if __name__ == "__main__":
    app()
