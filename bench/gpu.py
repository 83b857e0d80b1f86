"""`python -m bench.gpu`: checks and measures the engine on the device at hand. `docs/gpu-check.md` explains it.

Needs torch and diffusers, and no Ray. Exits with 1 if a check failed.
"""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.device.report import Report, ResultsUnwritable
from bench.device.run import QUICK, Part, Plan, run
from bench.device.tables import print_results
from deployments.errors import ModelUnusable


class Model(StrEnum):
    """A model to measure."""

    EMBEDDED = "embedded"
    SDXL = "sdxl"
    FLUX = "flux"


class Weights(StrEnum):
    """How large the models with random weights are."""

    AUTO = "auto"
    REAL = "real"
    TINY = "tiny"


def main(
    *,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    model: Annotated[list[Model] | None, typer.Option(help="Model to measure; repeat for more. [default: all]")] = None,
    part: Annotated[list[Part] | None, typer.Option(help="Part to run; repeat for more. [default: all]")] = None,
    size: Annotated[list[int] | None, typer.Option(min=32, help="Side in pixels. [default: 512 and 1024]")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size to try. [default: 1, 2, 4 and 8]")] = None,
    weights: Annotated[Weights, typer.Option(help="Size of random models; auto: real on CUDA.")] = Weights.AUTO,
    steps: Annotated[int | None, typer.Option(min=1, max=100, help="Denoising steps. [default: 8]")] = None,
    requests: Annotated[int | None, typer.Option(min=2, max=200, help="Overlapping requests. [default: 50]")] = None,
    exact_size: Annotated[int | None, typer.Option(min=64, help="Their size in pixels. [default: 256]")] = None,
    images: Annotated[int | None, typer.Option(min=2, max=200, help="Pictures in a timed run. [default: 4]")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed runs; 6 cover 97 %. [default: 6]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads of torch. [default: 2]")] = None,
    quick: Annotated[bool, typer.Option(help="Minutes on two cores: one small size, tiny weights.")] = False,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("bench/gpu-results.json"),
    folder: Annotated[Path, typer.Option(help="Where pictures lie meanwhile.")] = Path("out/gpu-check"),
) -> None:
    """Check and measure the engine on the device at hand."""
    asked: dict[str, Any] = {
        "device": device,
        "models": tuple(one.value for one in model) if model else None,
        "parts": tuple(part) if part else None,
        "sizes": tuple(size) if size else None,
        "batches": tuple(batch) if batch else None,
        "scale": None if weights is Weights.AUTO else weights.value,
        "steps": steps,
        "requests": requests,
        "exact_size": exact_size,
        "images": images,
        "rounds": rounds,
        "threads": threads,
    }
    plan = replace(QUICK if quick else Plan(), **{name: value for name, value in asked.items() if value is not None})
    console = Console()
    try:
        results = run(plan, folder, Report(console, output))
    except (ModelUnusable, ResultsUnwritable) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    print_results(results, console)
    console.print(f"{results.wall_s:.0f} s; written to {output}.")
    raise typer.Exit(int(results.failed))


if __name__ == "__main__":
    typer.run(main)
