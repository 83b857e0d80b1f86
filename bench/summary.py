"""From runs to medians and ratios."""

from collections.abc import Callable, Sequence
from statistics import median

from bench.records import Calls, Estimate, Ratio, Run, SystemFigures
from bench.statistics import estimate


def summarise(runs: Sequence[Run]) -> SystemFigures:
    """Return the medians of all runs of one system."""

    def of(value: Callable[[Calls], float], calls: Callable[[Run], Calls | None]) -> Estimate | None:
        values = [value(made) for run in runs if (made := calls(run)) is not None]
        return estimate(values) if values else None

    return SystemFigures(
        system=runs[0].system,
        jobs_per_s=estimate([run.jobs_per_s for run in runs]),
        submits_per_s=estimate([run.submits.per_s for run in runs]),
        submit_p50_ms=estimate([run.submits.p50_ms for run in runs]),
        submit_p99_ms=estimate([run.submits.p99_ms for run in runs]),
        polls_per_s=of(lambda calls: calls.per_s, lambda run: run.polls),
        poll_p50_ms=of(lambda calls: calls.p50_ms, lambda run: run.polls),
        poll_p99_ms=of(lambda calls: calls.p99_ms, lambda run: run.polls),
        open_polls_per_s=of(lambda calls: calls.per_s, lambda run: run.open_polls),
        cpu_ms_per_job=_medians([run.cpu_ms_per_job for run in runs]),
        cpu_ms_per_poll=_medians([run.cpu_ms_per_poll for run in runs]),
        cpu_ms_per_open_poll=_medians([run.cpu_ms_per_open_poll for run in runs]),
    )


def ratios(runs: Sequence[Run], compared: Sequence[tuple[str, str]]) -> tuple[Ratio, ...]:
    """Return how the rates of the first and the second system of each pair compare, round by round."""
    rates = {name: [run.jobs_per_s for run in runs if run.system == name] for pair in compared for name in pair}
    return tuple(
        Ratio(
            name=f"{ours} / {theirs}",
            estimate=estimate([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]),
        )
        for ours, theirs in compared
    )


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    roles = {role for run in runs for role in run}
    found = {role: round(median(run.get(role, 0.0) for run in runs), 3) for role in roles}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
