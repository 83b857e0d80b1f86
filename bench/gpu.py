"""`python -m bench.gpu`: checks and measures the engine on the device at hand. `docs/gpu-check.md` explains it.

Needs torch and diffusers, and no Ray. Exits with 1 if a check failed.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from bench.device.random_models import Scale
from bench.device.results import write_results
from bench.device.run import Part, Plan, run
from bench.device.tables import print_results


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
    steps: Annotated[int | None, typer.Option(min=1, max=100, help="Denoising steps. [default: by model]")] = None,
    requests: Annotated[int, typer.Option(min=2, max=200, help="Overlapping requests.")] = Plan.requests,
    exact_size: Annotated[int, typer.Option(min=64, help="Their size in pixels.")] = Plan.exact_size,
    images: Annotated[int, typer.Option(min=2, max=200, help="Pictures in one timed run.")] = Plan.images,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; of fewer than 6 no interval covers 95 %.")] = Plan.rounds,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads of torch.")] = Plan.threads,
    quick: Annotated[bool, typer.Option(help="About a minute on two cores: one small size, tiny weights.")] = False,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("bench/gpu-results.json"),
    folder: Annotated[Path, typer.Option(help="Where pictures lie meanwhile.")] = Path("out/gpu-check"),
) -> None:
    """Check and measure the engine on the device at hand."""
    plan = Plan(
        models=tuple(one.value for one in model or Model),
        parts=tuple(part or Part),
        sizes=tuple(size or ((128,) if quick else Plan.sizes)),
        batches=tuple(batch or ((1, 2, 4) if quick else Plan.batches)),
        steps=steps or (2 if quick else None),
        requests=requests,
        exact_size=64 if quick else exact_size,
        images=images,
        rounds=rounds,
        threads=threads,
        scale="tiny" if quick else None if weights is Weights.AUTO else cast(Scale, weights.value),
        device=device,
    )
    console = Console()
    results = run(plan, folder, console)
    print_results(results, console)
    write_results(results, output)
    console.print(f"{results.wall_s:.0f} s; written to {output}.")
    raise typer.Exit(int(results.failed))


if __name__ == "__main__":
    typer.run(main)
