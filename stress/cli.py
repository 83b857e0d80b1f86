"""The command line of the validators' kit: `python -m stress.cli run|stress|soak|validate|callback-server`.

Without a command it does `run`. Exit codes: 0 every check passed, 1 a check failed, 2 wrong usage or environment
(nobody there, port taken, every check skipped), 130 interrupted; what was found until then is in the reports.
"""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.logging import RichHandler
from typer.core import TyperGroup

from stress.callback_server import (
    DEFAULT_HOST,
    DEFAULT_MAX_PICTURE_BYTES,
    DEFAULT_PORT,
    DEFAULT_STORAGE,
    CallbackServer,
    serve_forever,
)
from stress.catalogue import RUN_CHECKS, Amounts, soak_checks, stress_checks
from stress.checks.interference import LONG_STEPS
from stress.checks.memory import MetricsMemory, ProcessMemory
from stress.checks.outcome import KitReport, Verdict
from stress.checks.references import References
from stress.cli_options import Options, takes_options
from stress.errors import BackgroundServerError
from stress.kit_run import Plan, PlannedCheck, run_plan
from stress.kit_settings import KitSettings
from stress.open_files import allow_many_connections
from stress.preflight import EnvironmentProblem
from stress.repeating import repeating
from stress.reports import words
from stress.reports.console import ConsoleProgress, print_line, print_problem, print_summary, print_table, print_wide
from stress.reports.html import write_html
from stress.reports.json_report import write_json
from stress.reports.junit import write_junit
from stress.validate import exit_code, to_json, to_table, validate_paths

# A field's name and value as HTTP allows them (RFC 9110, 5.1 and 5.5), without the bytes that have no common meaning.
_HEADER = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*:[ \t]*([\t\x20-\x7e]*)")

FAILED = 1
UNUSABLE = 2
INTERRUPTED = 130


class _RunByDefault(TyperGroup):
    """Takes options without a command as those of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Check any service of the asynchronous text-to-image protocol, over HTTP alone. Without a command: run.",
)


@app.command()
@takes_options
def run(options: Options) -> None:
    """Check the protocol: one job from submission to callback, then the cases that must go wrong rightly."""
    _check("run", options, RUN_CHECKS, expiry_minutes=5)


@app.command()
@takes_options
def stress(
    options: Options,
    sequential: Annotated[
        int | None, typer.Option(min=1, help="Jobs one after the other. \\[STRESS_TEST_SEQUENTIAL, 5]")
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Keep reference pictures here for later calls."),
    ] = None,
    no_reference: Annotated[
        bool, typer.Option("--no-reference", help="Draw no references: compare the jobs only with each other.")
    ] = False,
) -> None:
    """Check under load: many at once, adapters in turn, interference, and every picture against a serial reference."""
    settings = _settings(options)
    few = options.quick
    amounts = Amounts(
        concurrent=options.jobs or (3 if few else settings.stress_concurrent),
        sequential=sequential or (2 if few else settings.stress_sequential),
        beside=3 if few else 6,
        long_steps=10 if few else LONG_STEPS,
    )
    drawn = None if no_reference else References(references, service=settings.miner_url)
    checks = stress_checks(amounts, references=drawn, interference=settings.enable_training)
    _check("stress", options, checks, expiry_minutes=10)


@app.command()
@takes_options
def soak(
    options: Options,
    rate: Annotated[float, typer.Option(min=0.001, help="Jobs per second.")] = 0.2,
    duration: Annotated[float, typer.Option(min=1.0, help="Seconds during which jobs are submitted.")] = 600.0,
    metrics_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Prometheus metrics to read the service's memory from.")
    ] = None,
    process: Annotated[
        list[int] | None,
        typer.Option(metavar="PID", help="A process of the service on this machine, to add up memory of. Repeatable."),
    ] = None,
) -> None:
    """Submit at a steady rate for a time, and watch latency and memory."""
    memory = MetricsMemory(metrics_url) if metrics_url else ProcessMemory(process) if process else None
    _check("soak", options, soak_checks(rate, duration, memory), expiry_minutes=10)


@app.command()
def validate(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Pictures, folders, or - for standard input.")],
    width: Annotated[int | None, typer.Option(min=1, help="Pixels. \\[1024]")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels. \\[1024]")] = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Take each picture's own size as the asked one.")
    ] = False,
    png: Annotated[bool, typer.Option("--png", help="Demand PNG.")] = False,
    shallow: Annotated[bool, typer.Option("--shallow", help="Only the first checks: size, black, one colour.")] = False,
    no_recursion: Annotated[bool, typer.Option("--no-recursion", help="Leave folders in folders out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check pictures in files and folders; 1 if any is invalid, 2 if there is none."""
    if any_size and (width is not None or height is not None):
        raise typer.BadParameter("--any-size takes each picture's own size; leave --width and --height out.")
    verdicts = validate_paths(
        paths,
        recursive=not no_recursion,
        width=width,
        height=height,
        any_size=any_size,
        require_png=png,
        deep=not shallow,
    )
    if as_json:
        typer.echo(to_json(verdicts))
    else:
        print_wide(to_table(verdicts))
    code = exit_code(verdicts)
    if not verdicts:
        print_problem("There is no picture under these paths.")
    raise typer.Exit(code)


@app.command("callback-server")
def callback_server(
    host: Annotated[str, typer.Option(help="The address to bind.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(min=0, max=65535)] = DEFAULT_PORT,
    storage: Annotated[Path, typer.Option(help="Folder for pictures and records.", file_okay=False)] = DEFAULT_STORAGE,
    keep: Annotated[bool, typer.Option("--keep", help="Go on with the records of an earlier run.")] = False,
    max_picture_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes of pictures to keep; beyond that the oldest go.")
    ] = DEFAULT_MAX_PICTURE_BYTES // 1_000_000,
) -> None:
    """Receive callbacks and show them at / until Ctrl-C."""
    allow_many_connections()
    settings = _settings(Options())
    try:
        server = CallbackServer(
            host,
            port,
            secret=settings.demanded_secret,
            signing_secret=settings.callback_signing_secret,
            public_key=settings.callback_public_key,
            control_token=settings.callback_control_token,
            storage=storage,
            keep=keep,
            max_picture_bytes=max_picture_mb * 1_000_000,
        )
        serve_forever(
            server,
            on_listening=lambda it: print_line(f"Callback server listening on http://{host}:{it.port}"),
            on_stopping=lambda: print_line("Stopping callback server..."),
        )
    except (BackgroundServerError, ValueError) as error:
        raise _unusable(str(error)) from None


def _check(command: str, options: Options, checks: Sequence[PlannedCheck], *, expiry_minutes: float) -> None:
    """Run the chosen checks, tell what came of them, and end with their exit code."""
    if options.list_checks:
        for check in checks:
            print_line(f"{check.name:<24} {check.title}")
        return
    _demand_text(options.prompt)
    settings = _settings(options)
    plan = Plan(
        command=command,
        repeat=repeating(command, options.given or {}, settings),
        settings=settings,
        checks=_chosen(checks, options),
        asking=options.asking(expiry_minutes=expiry_minutes),
        budgets=options.budgets(),
        adapters=("", *dict.fromkeys(adapter for adapter in options.lora or () if adapter)),
        headers=_headers(options.header or ()),
        own_receiver=not options.no_auto_callback,
        pictures=options.pictures,
        job_timeout_s=options.job_timeout,
    )
    _demand_writable(options)
    progress = ConsoleProgress(live=not options.quiet)
    # Repeats and outages are findings; what is logged beyond them is a defect of the kit.
    logging.basicConfig(level=logging.ERROR, handlers=[RichHandler(console=progress.console, show_path=False)])
    allow_many_connections()
    try:
        report = run_plan(plan, progress)
    except EnvironmentProblem as problem:
        raise _unusable(str(problem)) from None
    written = _write(report, options)
    print_summary(report)
    if not options.quiet:
        print_table(report)
    if words.was_interrupted(report):
        raise typer.Exit(INTERRUPTED)
    if words.count(report.checks, Verdict.FAILED):
        raise typer.Exit(FAILED)
    if not report.passed:
        raise _unusable("Nothing could be checked: every check was skipped, and its note says why.")
    raise typer.Exit(0 if written else UNUSABLE)


def _settings(options: Options) -> KitSettings:
    try:
        return options.settings()
    except ValidationError as error:
        sentences = (
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise _unusable(f"A flag or a variable of the environment cannot be used. {'; '.join(sentences)}.") from None


def _chosen(checks: Sequence[PlannedCheck], options: Options) -> list[PlannedCheck]:
    names = [check.name for check in checks]
    for name in (*(options.only or ()), *(options.skip or ())):
        if name not in names:
            raise _unusable(f"There is no check {name!r} in this command. There are: {', '.join(names)}.")
    only = set(options.only or names).difference(options.skip or ())
    chosen = [check for check in checks if check.name in only]
    if not chosen:
        raise _unusable("--only and --skip leave no check to run.")
    return chosen


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for one in given:
        parts = _HEADER.fullmatch(one)
        if parts is None:
            # The value may be a credential: only the name is repeated.
            name = ascii(one.partition(":")[0])
            raise _unusable(f"The --header {name} cannot be sent. Write it as 'Name: value', in ASCII and on one line.")
        headers[parts[1]] = parts[2].strip()
    return headers


def _demand_text(prompt: str) -> None:
    # The shell hands on bytes that are no UTF-8 as halves of surrogate pairs.
    if not prompt.strip() or any("\ud800" <= character <= "\udfff" for character in prompt):
        raise _unusable("The --prompt is empty or no UTF-8. Give what is to be drawn in words.")


def _demand_writable(options: Options) -> None:
    # Before the checks: an hour of them must not end in a report that cannot be written.
    if options.pictures is not None:
        try:
            options.pictures.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.pictures).close()
        except OSError as error:
            raise _unusable(
                f"No picture can be kept in {options.pictures}: {error.strerror}. Choose another folder for --pictures."
            ) from None
    for path in (options.json_file, options.junit_file, options.html_file):
        if path is None:
            continue
        if str(path) == "-":
            raise _unusable("Standard output has the lines of the report. Name a file for --json, --junit or --html.")
        is_new = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
            if is_new:
                path.unlink()
        except OSError as error:
            raise _unusable(f"The report {path} cannot be written: {error.strerror}. Choose another place.") from None


def _write(report: KitReport, options: Options) -> bool:
    """Write every report that was asked for; False if one could not be."""
    written = True
    for path, write in (
        (options.json_file, write_json),
        (options.junit_file, write_junit),
        (options.html_file, write_html),
    ):
        if path is None:
            continue
        try:
            write(report, path)
        except (OSError, ValueError) as error:
            # One that fails takes neither the others nor the summary with it.
            written = False
            print_problem(f"The report {path} could not be written: {error}. Choose another place.")
    return written


def _unusable(sentence: str) -> typer.Exit:
    print_problem(sentence)
    return typer.Exit(UNUSABLE)


if __name__ == "__main__":
    app(prog_name="python -m stress.cli")
