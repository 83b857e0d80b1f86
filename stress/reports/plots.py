"""Geometry of the report's plots: numbers in, positions in a drawing of fixed size out. The template draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stress.checks.outcome import CheckReport, JobTrace
from stress.reports.words import figure_words

WIDTH = 720.0
PLOT_HEIGHT = 170.0
ROW_HEIGHT = 14.0
MARGIN_LEFT = 112.0
MARGIN_RIGHT = 14.0
MARGIN_TOP = 10.0
MARGIN_BOTTOM = 24.0
# More rows than this are a wall, not a picture; the distribution shows those.
MAX_TIMELINE_JOBS = 60
MIN_DISTRIBUTION_JOBS = 4
# Drawn alone to compare with, so their times say nothing about the load.
_REFERENCE = "reference "
# A curve has no more points than the drawing has pixels.
MAX_POINTS = 600

_INNER_WIDTH = WIDTH - MARGIN_LEFT - MARGIN_RIGHT


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Span:
    """One part of a job's row: what it was doing from `x` for `width`."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True)
class Row:
    """One job in a timeline; `title` is shown when pointed at."""

    y: float
    label: str
    title: str
    bad: bool
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Timeline:
    """When each job was submitted, final and called back."""

    height: float
    bottom: float
    ticks: tuple[Tick, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Curve:
    """A line; `points` is in the form of SVG's attribute."""

    name: str
    points: str


@dataclass(frozen=True)
class Chart:
    """Lines over a common pair of axes."""

    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    height: float = PLOT_HEIGHT
    bottom: float = PLOT_HEIGHT - MARGIN_BOTTOM


def timeline(check: CheckReport) -> Timeline | None:
    """Lay out one row per job, in order of submission; None for no jobs or too many."""
    jobs = sorted((job for job in check.jobs if job.accepted), key=lambda job: job.submitted_s)
    if not 0 < len(jobs) <= MAX_TIMELINE_JOBS:
        return None
    ticks, end_s = _axis(max(_last_s(job) for job in jobs))
    bad = {finding.job_id for finding in check.findings}
    rows = tuple(
        Row(
            y=MARGIN_TOP + index * ROW_HEIGHT,
            label=job.label or f"{index + 1}",
            title=_title(job),
            bad=job.job_id in bad,
            spans=_spans(job, end_s),
        )
        for index, job in enumerate(jobs)
    )
    bottom = MARGIN_TOP + len(rows) * ROW_HEIGHT
    return Timeline(bottom + MARGIN_BOTTOM, bottom, _x_ticks(ticks, end_s, "s"), rows)


def distribution(check: CheckReport) -> Chart | None:
    """Draw which share of the jobs was final, and called back, within how many seconds; None for few jobs.

    References, which the load checks draw alone, are left out.
    """
    jobs = [job for job in check.jobs if job.accepted and not job.label.startswith(_REFERENCE)]
    moments = {
        "final": sorted(job.final_s - job.submitted_s for job in jobs if job.final_s is not None),
        "callback": sorted(job.callback_s - job.submitted_s for job in jobs if job.callback_s is not None),
    }
    moments = {name: values for name, values in moments.items() if values}
    if len(jobs) < MIN_DISTRIBUTION_JOBS or not moments:
        return None
    ticks, end_s = _axis(max(values[-1] for values in moments.values()))
    curves = tuple(Curve(name, _steps(values, len(jobs), end_s)) for name, values in moments.items())
    shares = tuple(Tick(_y(share, 1.0), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    return Chart("Share of jobs done within", "seconds since submission", _x_ticks(ticks, end_s, "s"), shares, curves)


def series(name: str, points: Sequence[tuple[float, float]]) -> Chart | None:
    """Draw one measured curve over the time of the check; None without two finite points."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and x >= 0]
    if len(finite) < 2:
        return None
    finite = finite[:: math.ceil(len(finite) / MAX_POINTS)]
    x_ticks, end_s = _axis(max(x for x, _ in finite))
    y_ticks, top = _axis(max(y for _, y in finite))
    drawn = " ".join(f"{_x(x, end_s):.1f},{_y(max(y, 0.0), top):.1f}" for x, y in finite)
    labelled = tuple(Tick(_y(value, top), _number(value)) for value in y_ticks)
    label, unit = figure_words(name)
    title = f"{label.capitalize()}, {unit}" if unit else label.capitalize()
    return Chart(title, "seconds since the check began", _x_ticks(x_ticks, end_s, "s"), labelled, (Curve(name, drawn),))


def _axis(largest: float) -> tuple[tuple[float, ...], float]:
    """Return round values from 0 that cover `largest`, and the last of them."""
    if not math.isfinite(largest) or largest <= 0:
        largest = 1.0
    rough = largest / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    count = math.ceil(largest / step - 1e-9)
    return tuple(index * step for index in range(count + 1)), count * step


def _x_ticks(values: Sequence[float], end: float, unit: str) -> tuple[Tick, ...]:
    return tuple(Tick(_x(value, end), f"{_number(value)} {unit}") for value in values)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"


def _x(value: float, end: float) -> float:
    return MARGIN_LEFT + _INNER_WIDTH * min(max(value / end, 0.0), 1.0)


def _y(value: float, top: float) -> float:
    inner = PLOT_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
    return PLOT_HEIGHT - MARGIN_BOTTOM - inner * min(value / top, 1.0)


def _steps(values: Sequence[float], total: int, end: float) -> str:
    points = [f"{MARGIN_LEFT:.1f},{_y(0, 1):.1f}"]
    for index, value in enumerate(values):
        x = _x(value, end)
        points += [f"{x:.1f},{_y(index / total, 1):.1f}", f"{x:.1f},{_y((index + 1) / total, 1):.1f}"]
    return " ".join([*points, f"{_x(end, end):.1f},{_y(len(values) / total, 1):.1f}"])


def _spans(job: JobTrace, end_s: float) -> tuple[Span, ...]:
    def span(kind: str, begin_s: float, until_s: float) -> Span:
        x = _x(begin_s, end_s)
        return Span(kind, x, max(_x(until_s, end_s) - x, 1.5))

    if job.final_s is None:
        return (span("open", job.submitted_s, end_s),)
    spans = [span("running", job.submitted_s, job.final_s)]
    if job.callback_s is not None and job.callback_s > job.final_s:
        spans.append(span("calling", job.final_s, job.callback_s))
    return tuple(spans)


def _last_s(job: JobTrace) -> float:
    return max(job.submitted_s, job.final_s or 0.0, job.callback_s or 0.0)


def _title(job: JobTrace) -> str:
    parts = [job.job_id, f"submitted at {job.submitted_s:.2f} s"]
    parts.append("never final" if job.final_s is None else f"final after {job.final_s - job.submitted_s:.2f} s")
    if job.callback_s is not None:
        parts.append(f"callback after {job.callback_s - job.submitted_s:.2f} s")
    return ", ".join(parts)
