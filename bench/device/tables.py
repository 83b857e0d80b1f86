"""The results as tables for a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.device.results import Results, Verdict

_COLOURS = {"passed": "green", "failed": "red", "unclear": "yellow", "skipped": "dim"}


def colour_of(verdict: Verdict) -> str:
    """Return the colour that a terminal gives a verdict's outcome."""
    return _COLOURS[verdict.outcome]


def print_results(results: Results, console: Console) -> None:
    """Print the machine, every figure, and last the verdicts."""
    machine = results.machine
    versions = f"torch {machine.torch}, diffusers {machine.diffusers}, {machine.threads} CPU threads"
    driver = f", driver {machine.driver}, CUDA {machine.cuda}" if machine.driver or machine.cuda else ""
    console.print(f"[bold]{machine.device}[/bold]{driver}, {machine.cpu} x {machine.cpu_count}, {versions}")
    for table in (_throughput(results), _batching(results), _layout(results), _verdicts(results)):
        if table.row_count:
            console.print(table)


def _throughput(results: Results) -> Table:
    table = Table(
        "model",
        "size",
        "steps",
        "images/s: engine",
        "bare, PNG",
        "bare, pixels",
        "engine / PNG",
        "engine / pixels",
        "CPU time / PNG",
        "idle",
        "gap ms",
        title="Engine beside the bare diffusers loop: median (interval)",
    )
    for one in results.throughput:
        rates = (one.engine, one.bare_png, one.bare_pixels)
        ratios = (one.engine_over_bare_png, one.engine_over_bare_pixels, one.engine_cpu_over_bare_png)
        table.add_row(
            one.model,
            str(one.size),
            str(one.steps),
            *(f"{rate:.3g}" for rate in rates),
            *(f"{ratio:.3f}" for ratio in ratios),
            f"{one.idle_share.median:.1%}",
            f"{one.gap_ms:.1f}",
        )
    return table


def _batching(results: Results) -> Table:
    table = Table(
        "model",
        "size",
        "batch",
        "images/s",
        "gain over 1",
        "from alone: mean",
        "max",
        "peak GiB",
        "pays",
        title="Batches in the bare loop: median (interval)",
    )
    for one in results.batching:
        for row in one.rows:
            table.add_row(
                one.model,
                str(one.size),
                str(row.batch),
                f"{row.images_per_s:.3g}",
                f"{row.gain:.2f}",
                f"{row.distance_to_alone.mean_levels:.3g}",
                str(row.distance_to_alone.max_levels),
                f"{row.peak_memory_bytes / 2**30:.1f}" if row.peak_memory_bytes else "-",
                "yes" if row.batch <= one.pays_up_to else "no",
            )
    return table


def _layout(results: Results) -> Table:
    table = Table(
        "model",
        "size",
        "images/s: contiguous",
        "channels_last",
        "gain",
        "apart: mean",
        "max",
        title="Engine with each memory format of convolutions: median (interval)",
    )
    for one in results.layout:
        table.add_row(
            one.model,
            str(one.size),
            f"{one.contiguous:.3g}",
            f"{one.channels_last:.3g}",
            f"{one.gain:.2f}",
            f"{one.distance.mean_levels:.3g}",
            str(one.distance.max_levels),
        )
    return table


def _verdicts(results: Results) -> Table:
    table = Table("check", "model", "verdict", "in words", title="Verdicts")
    for one in results.verdicts:
        colour = colour_of(one)
        table.add_row(one.check, one.subject, f"[{colour}]{one.outcome}[/{colour}]", escape(one.sentence))
    return table
