"""The results as one SVG: horizontal bars, with the interval of the median where there is one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.records import Estimate, Results
from bench.tables import number

WIDTH = 860
LABEL_WIDTH = 220
BAR_WIDTH = 500
ROW_HEIGHT = 22
TITLE_HEIGHT = 40
MARGIN = 16

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 } .bar { fill: #b8c7d9 }
.ours { fill: #3c6e9f } .whisker { stroke: #222; stroke-width: 1.5 } .paper { fill: #fff }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One value. `low` and `high` bound it; `ours` tells Darkroom from what it is compared with."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars on a common scale from 0."""

    title: str
    bars: tuple[Bar, ...]


def draw(results: Results, file: Path) -> None:
    """Write the plot of all sections that there are."""
    file.write_text(svg(panels_of(results)))


def panels_of(results: Results) -> list[Panel]:
    """Return what is drawn."""
    sections = (_rates, _protection, _shares, _history, _starts)
    return [panel for section in sections for panel in section(results) if panel.bars]


def _rates(results: Results) -> Iterable[Panel]:
    for mode in results.job_path.modes if results.job_path else ():
        bars = tuple(_bar(s.system, s.jobs_per_s, ours=s.system.startswith("darkroom")) for s in mode.systems)
        yield Panel(f"Jobs (constant: requests) per second, {mode.mode} proxy", bars)


def _protection(results: Results) -> Iterable[Panel]:
    found = results.protection.ratios if results.protection else ()
    # What each is divided by is in the title; both names would not fit beside the bar.
    bars = tuple(_bar(ratio.name.partition(" / ")[0], ratio.estimate) for ratio in found)
    yield Panel("Jobs a second with keys, limits and signatures, share of the open service's", bars)


def _shares(results: Results) -> Iterable[Panel]:
    runs = results.scale.runs if results.scale else ()
    labels = [f"1 to {run.devices_at_the_end} devices" if run.autoscaled else f"{run.devices} devices" for run in runs]
    for title, values in (
        ("Throughput, share of ideal", [run.share_of_ideal for run in runs]),
        ("Idle share of the devices under backlog", [run.idle_share for run in runs]),
    ):
        yield Panel(title, tuple(Bar(label, v, v, v) for label, v in zip(labels, values, strict=True)))


def _history(results: Results) -> Iterable[Panel]:
    sizes = results.history.sizes if results.history else ()
    bars = tuple(_bar(f"{size.finished_jobs:,} finished jobs", size.submit_ratio) for size in sizes)
    yield Panel("Submit latency beside a service without finished jobs", bars)


def _starts(results: Results) -> Iterable[Panel]:
    runs = results.start.pictures if results.start else ()
    bars = tuple(_bar(f"{run.engine}, {run.mode} proxy", run.first_picture_s) for run in runs)
    yield Panel("Seconds from the first process to the first picture", bars)


def _bar(label: str, of: Estimate, *, ours: bool = True) -> Bar:
    return Bar(label, of.median, of.low, of.high, ours)


def svg(panels: Sequence[Panel]) -> str:
    """Return the drawing."""
    parts, y = [], MARGIN
    for panel in panels:
        parts.append(f'<text class="title" x="{MARGIN}" y="{y + 16}">{escape(panel.title)}</text>')
        y += TITLE_HEIGHT - 12
        largest = max([0.0, *(bar.high for bar in panel.bars)]) or 1.0
        for bar in panel.bars:
            parts += _drawn(bar, y, BAR_WIDTH / largest)
            y += ROW_HEIGHT
        y += 12
    height = y + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
    paper = f'<rect class="paper" width="{WIDTH}" height="{height}"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", paper, *parts, "</svg>\n"])


def _drawn(bar: Bar, y: int, scale: float) -> list[str]:
    width, middle = max(0.0, bar.value) * scale, y + ROW_HEIGHT / 2
    kind = "bar ours" if bar.ours else "bar"
    parts = [
        f'<text x="{LABEL_WIDTH - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{y + 3}" width="{width:.1f}" height="{ROW_HEIGHT - 6}"/>',
    ]
    end = LABEL_WIDTH + max(width, max(0.0, bar.high) * scale)
    if bar.low < bar.high:
        low, high = (LABEL_WIDTH + max(0.0, value) * scale for value in (bar.low, bar.high))
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>')
        parts += [
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - 4}" y2="{middle + 4}"/>'
            for x in (low, high)
        ]
    parts.append(f'<text x="{end + 8:.1f}" y="{middle + 4}">{number(bar.value)}</text>')
    return parts
