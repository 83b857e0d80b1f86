"""The results as tables for a terminal."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from bench.records import Conditions, Estimate, History, JobPath, ModeFigures, Protection, Ratio, Results, Scale, Start

_MOST_ROLES = 6


def print_results(results: Results, console: Console) -> None:
    """Print every section that there is."""
    for section in _PRINTED:
        print_section(results, section, console)


def print_section(results: Results, section: str, console: Console) -> None:
    """Print one section, if it has been measured."""
    record = getattr(results, section)
    if record is not None:
        for table in _PRINTED[section](record):
            console.print(table)
        console.print(_conditions(results.conditions[section]), style="dim")


def _conditions(of: Conditions) -> str:
    speed = "" if of.python_ms is None else f", test loop {of.python_ms:g} ms"
    return (
        f"{of.plan} size, {of.measured_at}, commit {of.commit}, {of.cores} cores, load {of.load_before} before, "
        f"{of.filesystem}, Ray {of.ray}, Python {of.python}{speed}"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def number(value: float) -> str:
    """Return three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _interval(of: Estimate | None) -> str:
    if of is None:
        return "-"
    return f"{number(of.median)} ({number(of.low)}-{number(of.high)})"


def _median(of: Estimate | None) -> str:
    return "-" if of is None else number(of.median)


def _job_path(record: JobPath) -> list[Table]:
    tables = [table for mode in record.modes for table in _mode(record, mode)]
    generator = _table("Load generator", "", "requests/s")
    generator.add_row("against a bare server", number(record.bare_server.per_s))
    generator.add_row("that is so many times the fastest rate above", f"{record.headroom:.1f}")
    return [*tables, generator]


def _mode(record: JobPath, mode: ModeFigures) -> list[Table]:
    coverage = mode.systems[0].jobs_per_s.coverage
    title = (
        f"Job path, {mode.mode} proxy: {record.jobs} jobs, {record.submitters} submitters, {record.pairs} rounds; "
        f"medians (interval that holds the median with {coverage:.1%})"
    )
    columns = (
        "system",
        "jobs/s",
        "submits/s",
        "submit p50 ms",
        "submit p99 ms",
        "status p50 / p99 ms",
        "polls/s",
        "open polls/s",
    )
    rates = _table(title, *columns)
    for system in mode.systems:
        status = f"{_median(system.poll_p50_ms)} / {_median(system.poll_p99_ms)}"
        rates.add_row(
            system.system,
            _interval(system.jobs_per_s),
            _median(system.submits_per_s),
            _median(system.submit_p50_ms),
            _median(system.submit_p99_ms),
            status if system.poll_p50_ms else "-",
            _interval(system.polls_per_s),
            _interval(system.open_polls_per_s),
        )
    return [rates, _ratios(mode.ratios), _cpu(mode), _memory(mode)]


def _ratios(ratios: Sequence[Ratio]) -> Table:
    table = _table("Jobs/s, round by round", "", "ratio")
    for ratio in ratios:
        table.add_row(ratio.name, _interval(ratio.estimate))
    return table


def _cpu(mode: ModeFigures) -> Table:
    table = _table("Processor milliseconds per job, and per poll, by process", "system", "per job", "per final poll")
    table.add_column("per open poll", justify="right")
    for system in mode.systems:
        table.add_row(
            system.system,
            _roles(system.cpu_ms_per_job),
            _roles(system.cpu_ms_per_poll),
            _roles(system.cpu_ms_per_open_poll),
        )
    return table


def _roles(ms: dict[str, float]) -> str:
    return "\n".join(f"{role} {number(value)}" for role, value in list(ms.items())[:_MOST_ROLES]) or "-"


def _memory(mode: ModeFigures) -> Table:
    open_on: dict[str, list[str]] = {row.role: [] for row in mode.memory}
    for listener in mode.listeners:
        open_on.setdefault(listener.role, []).append(f"{listener.reach}: {', '.join(map(str, listener.ports))}")
    table = _table("Memory and open ports by process", "role", "processes", "resident MB", "proportional MB", "listens")
    for row in mode.memory:
        ports = "\n".join(open_on[row.role])
        table.add_row(row.role, str(row.processes), number(row.rss_mb), number(row.pss_mb), ports)
    return table


def _protection(record: Protection) -> list[Table]:
    coverage = record.ratios[0].estimate.coverage
    title = (
        f"Protection: {record.jobs} jobs, {record.submitters} submitters, {record.pairs} rounds; medians (interval "
        f"that holds the median with {coverage:.1%})"
    )
    rates = _table(title, "service", "jobs/s", "submit p50 ms", "polls/s", "processor ms per job")
    for system in record.systems:
        rates.add_row(
            system.system,
            _interval(system.jobs_per_s),
            _median(system.submit_p50_ms),
            _interval(system.polls_per_s),
            _roles(system.cpu_ms_per_job),
        )
    ratios = _ratios(record.ratios)
    ratios.add_row("signature of a callback, ms", _interval(record.callback_signature_ms))
    return [rates, ratios]


def _history(record: History) -> list[Table]:
    columns = ("finished jobs", "store MB", "submit p50 ms", "of the first's", "tracker RSS / PSS MB", "restart s")
    table = _table(f"History: {record.submits} submits in turn, one at a time", *columns)
    for size in record.sizes:
        table.add_row(
            f"{size.finished_jobs:,}",
            number(size.store_mb),
            number(size.submit_p50_ms),
            _interval(size.submit_ratio),
            f"{number(size.tracker_rss_mb)} / {number(size.tracker_pss_mb)}",
            _interval(size.restart_s),
        )
    return [table]


def _scale(record: Scale) -> list[Table]:
    columns = (
        "devices",
        "jobs",
        "render s",
        "jobs/s",
        "share of ideal",
        "idle share",
        "tracker ms/job",
        "tracker cores",
    )
    table = _table("Scale: simulated devices", *columns)
    for run in record.runs:
        devices = f"1 to {run.devices_at_the_end} (autoscaled)" if run.autoscaled else str(run.devices)
        table.add_row(
            devices,
            str(run.jobs),
            number(run.render_s),
            number(run.jobs_per_s),
            f"{run.share_of_ideal:.3f}",
            f"{run.idle_share:.1%}",
            number(run.tracker_cpu_ms_per_job),
            number(run.tracker_cores),
        )
    return [table]


def _start(record: Start) -> list[Table]:
    columns = ("engine, proxy", "HTTP answers", "jobs accepted", "model loaded", "rendering began", "first picture")
    table = _table("Start: seconds from the first process to", *columns)
    for run in record.pictures:
        moments = (
            run.http_answers_s,
            run.jobs_accepted_s,
            run.model_loaded_s,
            run.rendering_began_s,
            run.first_picture_s,
        )
        table.add_row(f"{run.engine}, {run.mode}", *(_interval(moment) for moment in moments))
    return [table]


_PRINTED: dict[str, Callable[..., list[Table]]] = {
    "start": _start,
    "job_path": _job_path,
    "protection": _protection,
    "history": _history,
    "scale": _scale,
}
