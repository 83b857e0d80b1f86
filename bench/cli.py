"""The command line: `python -m bench all`, or one benchmark at a time."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import results, tables
from bench.errors import BenchError
from bench.history import measure_history
from bench.job_path import measure_job_path
from bench.plan import FULL, QUICK, TINY, Plan
from bench.plot import draw
from bench.protection import measure_protection
from bench.records import ProxyModeName, Record
from bench.scale import measure_scale
from bench.start import ENGINES, measure_start
from launcher.local import LaunchError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Measure what Darkroom costs."
)


class Mode(StrEnum):
    """Which proxy."""

    DEFAULT = "default"
    HAPROXY = "haproxy"
    BOTH = "both"

    def names(self) -> tuple[ProxyModeName, ...]:
        """Return the modes to measure."""
        one: dict[Mode, tuple[ProxyModeName, ...]] = {Mode.DEFAULT: ("default",), Mode.HAPROXY: ("haproxy",)}
        return one.get(self, ("default", "haproxy"))


Quick = Annotated[bool, typer.Option("--quick", help="Small sizes: some minutes for all; figures are rough.")]
Tiny = Annotated[bool, typer.Option("--tiny", hidden=True, help="Sizes for tests; figures mean nothing.")]
Out = Annotated[Path, typer.Option(help="Where results go; the plot goes beside it, as .svg.", dir_okay=False)]
Home = Annotated[Path, typer.Option(help="Folder for stores, pictures and logs; on a real disk.", resolve_path=True)]
Modes = Annotated[Mode, typer.Option("--mode", help="The HTTP proxy of Ray Serve.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Jobs of each run.")]
Submitters = Annotated[int | None, typer.Option(min=1, help="Callers at once.")]
Pairs = Annotated[int | None, typer.Option(min=1, help="Rounds; six or more give intervals of 95 %.")]
Numbers = Annotated[list[int] | None, typer.Option(min=0, help="May be given several times.")]
Engines = Annotated[list[str] | None, typer.Option("--engine", help="noop or embedded; may be given twice.")]

_WIDTH_OF_FILES = 150
_OUT = Path("bench/results.json")
_HOME = Path(".darkroom/bench")


@app.command("job-path")
def job_path(
    quick: Quick = False,
    tiny: Tiny = False,
    mode: Modes = Mode.BOTH,
    jobs: Jobs = None,
    submitters: Submitters = None,
    pairs: Pairs = None,
    out: Out = _OUT,
    home: Home = _HOME,
) -> None:
    """The way of a job, beside a constant and a naive app, behind both proxies."""
    plan = _plan(quick, tiny)
    plan = replace(plan, jobs=jobs or plan.jobs, submitters=submitters or plan.submitters, pairs=pairs or plan.pairs)
    _measure("job_path", plan, out, home, lambda tell: measure_job_path(plan, mode.names(), home / "job-path", tell))


@app.command("protection")
def protection(quick: Quick = False, tiny: Tiny = False, out: Out = _OUT, home: Home = _HOME) -> None:
    """The way of a job with API keys, limits and signatures, beside the way without."""
    plan = _plan(quick, tiny)
    _measure("protection", plan, out, home, lambda tell: measure_protection(plan, home / "protection", tell))


@app.command("history")
def history(
    quick: Quick = False, tiny: Tiny = False, finished: Numbers = None, out: Out = _OUT, home: Home = _HOME
) -> None:
    """Submits, memory and restart of a service that has many finished jobs."""
    plan = _plan(quick, tiny)
    plan = replace(plan, history=tuple(finished or plan.history))
    _measure("history", plan, out, home, lambda tell: measure_history(plan, home / "history", tell))


@app.command("scale")
def scale(
    quick: Quick = False, tiny: Tiny = False, devices: Numbers = None, out: Out = _OUT, home: Home = _HOME
) -> None:
    """Throughput and idle time with more (simulated) devices."""
    plan = _plan(quick, tiny)
    plan = replace(plan, devices=tuple(devices or plan.devices))
    _measure("scale", plan, out, home, lambda tell: measure_scale(plan, home / "scale", tell))


@app.command("start")
def start(
    quick: Quick = False, tiny: Tiny = False, engine: Engines = None, out: Out = _OUT, home: Home = _HOME
) -> None:
    """Seconds from nothing to the first picture."""
    plan, engines = _plan(quick, tiny), engine or list(ENGINES)
    _measure("start", plan, out, home, lambda tell: measure_start(plan, home / "start", tell, engines))


@app.command("all")
def everything(quick: Quick = False, tiny: Tiny = False, out: Out = _OUT, home: Home = _HOME) -> None:
    """All of them, one after the other."""
    start(quick, tiny, None, out, home)
    job_path(quick, tiny, Mode.BOTH, None, None, None, out, home)
    protection(quick, tiny, out, home)
    history(quick, tiny, None, out, home)
    scale(quick, tiny, None, out, home)


@app.command("show")
def show(out: Out = _OUT) -> None:
    """Print the tables of earlier results, and draw their plot again."""
    found = results.load(out)
    tables.print_results(found, _console())
    draw(found, out.with_suffix(".svg"))


def _console() -> Console:
    # Piped into a file there is no width to fit into, and tables of 80 columns cannot be read.
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)


def _plan(quick: bool, tiny: bool) -> Plan:
    if tiny:
        return TINY
    return QUICK if quick else FULL


def _measure(
    section: str, plan: Plan, out: Path, home: Path, measure: Callable[[Callable[[str], None]], Record]
) -> None:
    console = _console()
    before = results.load(out)
    conditions = results.conditions(plan.name, home)
    folder = home / section.replace("_", "-")
    # What an earlier run left, so that it can be looked at, would be found by the stores of this one.
    shutil.rmtree(folder, ignore_errors=True)
    with console.status(section) as status:
        record = measure(lambda what: status.update(f"{section}: {what}"))
    shutil.rmtree(folder, ignore_errors=True)
    merged = results.save(out, before, section, record, conditions)
    tables.print_section(merged, section, console)
    draw(merged, out.with_suffix(".svg"))


def main() -> None:
    """Run the command line; what cannot be measured is said in a sentence, with exit status 1."""
    try:
        app(prog_name="python -m bench")
    except (BenchError, LaunchError) as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
