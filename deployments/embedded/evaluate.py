"""Renders prompts with the model folder and measures them: `python -m deployments.embedded.evaluate`.

Prints one table per picture size and writes a contact sheet to look at. Figures: see `grader`.
"""

import io
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DiffusionPipeline
from PIL import Image
from rich.console import Console
from rich.table import Table

from deployments.embedded import ADAPTER_FOLDER, MODEL_FOLDER, captions, evaluate_adapter
from deployments.embedded.checkpoints import randomness
from deployments.embedded.grader import Grade, grade, pixels_of
from deployments.embedded.scenes import Scene, sample_scene

SEED = 20_261_122
"""Of the prompts; no training step uses it."""

# Limits that validators set for pictures of 1024 x 1024.
SMALLEST_FILE_BYTES = 100_000
LEAST_VARIANCE = 100.0
MOST_DARK = 0.5
DARK = 10


@dataclass(frozen=True, slots=True)
class Rendering:
    """One rendered prompt and what was measured on it."""

    prompt: str
    scene: Scene
    image: Image.Image
    grade: Grade
    acceptable: bool
    """Passes the limits of size in bytes, variance and darkness."""
    seconds: float


def prompts(count: int, seed: int = SEED) -> list[tuple[Scene, str]]:
    """Scenes of the grammar and a complete sentence for each."""
    random, _ = randomness(seed)
    scenes = [sample_scene(random) for _ in range(count)]
    return [(scene, captions.caption(scene, random).text) for scene in scenes]


def acceptable(image: Image.Image) -> bool:
    """Whether validators would take the picture for one, at 1024 x 1024."""
    png = io.BytesIO()
    image.save(png, format="PNG")
    values = pixels_of(image) * 255.0
    dark = float((values < DARK).all(0).float().mean())
    variance = float(values.var(correction=0))
    return len(png.getvalue()) > SMALLEST_FILE_BYTES and variance >= LEAST_VARIANCE and dark <= MOST_DARK


def render(
    pipeline: DiffusionPipeline, asked: Sequence[tuple[Scene, str]], size: tuple[int, int], steps: int
) -> Iterator[Rendering]:
    """Renders each prompt at size (width, height), guidance 7.0, its index as the seed."""
    for index, (scene, prompt) in enumerate(asked):
        began = time.perf_counter()
        image = pipeline(
            prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=7.0,
            generator=torch.Generator().manual_seed(index),
        ).images[0]
        seconds = time.perf_counter() - began
        yield Rendering(prompt, scene, image, grade(pixels_of(image), scene), acceptable(image), seconds)


def table(title: str, renderings: Sequence[Rendering]) -> Table:
    """Part of the pictures that are right, per question."""
    single = [r for r in renderings if r.scene.relation is None]
    pairs = [r for r in renderings if r.scene.relation is not None]
    rows = (
        ("background colour", [r.grade.background for r in renderings]),
        ("colour of one thing", [r.grade.colour for r in single]),
        ("shape of one thing", [bool(r.grade.shape) for r in single]),
        ("place of one thing", [r.grade.position for r in single]),
        ("both colours of two", [r.grade.colour for r in pairs]),
        ("relation of two", [r.grade.position for r in pairs]),
        ("validators' limits", [r.acceptable for r in renderings]),
    )
    out = Table("question", "right", "of", title=title)
    for name, values in rows:
        out.add_row(name, f"{sum(values) / max(1, len(values)):.1%}", str(len(values)))
    out.add_row("seconds, median", f"{sorted(r.seconds for r in renderings)[len(renderings) // 2]:.2f}", "")
    return out


def peak_memory_bytes() -> int:
    """Most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def contact_sheet(renderings: Sequence[Rendering], columns: int = 8, side: int = 256) -> Image.Image:
    """The pictures side by side, each within side x side pixels."""
    rows = -(-len(renderings) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, rendering in enumerate(renderings):
        small = rendering.image.copy()
        small.thumbnail((side - 4, side - 4), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % columns * side + 2, index // columns * side + 2))
    return sheet


def main(
    model: Annotated[Path, typer.Option(help="Model folder.")] = MODEL_FOLDER,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 200,
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT; may be given several times.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 28,
    sheet: Annotated[Path, typer.Option(help="Contact sheet to write (first 40 of each size).")] = Path(
        "out/contact-sheet.png"
    ),
    adapter: Annotated[str, typer.Option(help="Draw with this adapter and measure its look.")] = "",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Render, measure, print, and write a contact sheet."""
    torch.set_num_threads(threads)
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    if adapter:
        pipeline.load_lora_weights(ADAPTER_FOLDER, weight_name=f"{adapter}.safetensors")
        sheet = sheet.with_stem(f"{sheet.stem}-{adapter}")
    console = Console()
    for text in size or ["1024x1024"]:
        width, height = (int(side) for side in text.split("x"))
        renderings = list(render(pipeline, prompts(count), (width, height), steps))
        title = f"{count} prompts, {text}, {steps} steps"
        if adapter:
            pictures = [pixels_of(rendering.image) for rendering in renderings]
            console.print(evaluate_adapter.table(f"{adapter}, {title}", pictures))
        else:
            console.print(table(title, renderings))
        path = sheet.with_stem(f"{sheet.stem}-{text}")
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(renderings[:40]).save(path)
        console.print(f"look at {path}")
    console.print(f"peak memory {peak_memory_bytes() / 1e9:.2f} GB")


if __name__ == "__main__":
    typer.run(main)
