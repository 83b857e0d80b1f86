"""The report for people: one self-contained page that explains itself; what strangers sent is shown as text."""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stress.checks.outcome import CheckReport, Fault, Finding, JobTrace, KitReport, Verdict
from stress.reports import plots, words
from stress.reports.explanations import Explanation, explain
from stress.wire import JobState

# A page of ten thousand thumbnails helps nobody and opens nowhere; what was found comes first.
MAX_JOBS_SHOWN = 240
MAX_FINDINGS_SHOWN_OF_A_FAULT = 100
_THUMBNAIL = "data:image/"


@dataclass(frozen=True)
class Sighting:
    """A finding and the check that made it."""

    check: CheckReport
    finding: Finding


@dataclass(frozen=True)
class FaultGroup:
    """All findings of one fault; `left_out` says how many are not in `shown`."""

    fault: Fault
    explanation: Explanation
    total: int
    shown: tuple[Sighting, ...]

    @property
    def left_out(self) -> int:
        """How many findings are only in the JSON report."""
        return self.total - len(self.shown)


@dataclass(frozen=True)
class JobView:
    """One job and what was found about it."""

    check: CheckReport
    job: JobTrace
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The word that filters and styles go by."""
        return "failed" if self.findings else "passed"

    @property
    def thumbnail(self) -> str | None:
        """The picture made small, as an address that is part of the page."""
        picture = self.job.picture
        small = picture.thumbnail if picture is not None else None
        return small if small is not None and small.startswith(_THUMBNAIL) else None


@dataclass(frozen=True)
class CheckView:
    """One check with its plots."""

    report: CheckReport
    figures: tuple[tuple[str, float, str], ...]
    """What was measured, its number and its unit."""
    timeline: plots.Timeline | None
    charts: tuple[plots.Chart, ...]


def write_html(report: KitReport, path: Path) -> None:
    """Write the report as a page. Raises OSError."""
    path.write_text(render_html(report), encoding="utf-8")


def render_html(report: KitReport) -> str:
    """Return the report as a page."""
    css, script = _source("report.css"), _source("report.js")
    jobs = [view for check in report.checks for view in _job_views(check)]
    shown = sorted(jobs, key=lambda view: not view.findings)[:MAX_JOBS_SHOWN]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            css=Markup(css),  # noqa: S704 - files of the kit
            script=Markup(script),  # noqa: S704
            policy=_policy(css, script),
            groups=_groups(report),
            checks=[_check_view(check) for check in report.checks],
            jobs=shown,
            jobs_left_out=len(jobs) - len(shown),
            tiles=_tiles(report, jobs),
            plots=plots,
            words=words,
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("stress.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    return (files("stress.reports") / "templates" / name).read_text(encoding="utf-8")


def _policy(css: str, script: str) -> str:
    """Return a Content-Security-Policy under which only this style and this script take effect."""
    return (
        f"default-src 'none'; img-src data:; style-src {_source_hash(css)}; script-src {_source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _groups(report: KitReport) -> list[FaultGroup]:
    sightings: defaultdict[Fault, list[Sighting]] = defaultdict(list)
    for check in report.checks:
        for finding in check.findings:
            sightings[finding.fault].append(Sighting(check, finding))
    groups = [
        FaultGroup(fault, explain(fault), len(found), tuple(found[:MAX_FINDINGS_SHOWN_OF_A_FAULT]))
        for fault, found in sightings.items()
    ]
    return sorted(groups, key=lambda group: -group.total)


def _job_views(check: CheckReport) -> list[JobView]:
    findings: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in check.findings:
        if finding.job_id is not None:
            findings[finding.job_id].append(finding)
    return [JobView(check, job, tuple(findings[job.job_id])) for job in check.jobs]


def _check_view(check: CheckReport) -> CheckView:
    charts = [plots.distribution(check), *(plots.series(name, points) for name, points in check.series.items())]
    return CheckView(
        check, tuple(_figures(check)), plots.timeline(check), tuple(chart for chart in charts if chart is not None)
    )


def _figures(check: CheckReport) -> Iterator[tuple[str, float, str]]:
    """Give each figure once: counts that the card's head has, and the p99 of what was measured once, say nothing."""
    figures = check.figures
    for name, value in figures.items():
        label, unit = words.figure_words(name)
        if name in {"jobs", "jobs_accepted"} and value == len(check.jobs):
            continue
        if "_p99_" in name and figures.get(name.replace("_p99_", "_p50_")) == value:
            continue
        if "_p50_" in name and figures.get(name.replace("_p50_", "_p99_")) == value:
            label = label.removesuffix(" p50")
        yield label, value, unit


def _tiles(report: KitReport, jobs: list[JobView]) -> list[tuple[str, str, str]]:
    """Return the figures at the top as (number, what, remark)."""
    completed = sum(view.job.status is not None and view.job.status.status is JobState.COMPLETED for view in jobs)
    # Some checks ask for jobs that fail, expire or are cancelled: those count as good when they end so.
    as_expected = sum(view.verdict == "passed" for view in jobs)
    pictures = [view.job.picture for view in jobs if view.job.picture is not None]
    good = sum(picture.valid for picture in pictures)
    findings = sum(len(check.findings) for check in report.checks)
    skipped = words.count(report.checks, Verdict.SKIPPED)
    passed, failed = (words.count(report.checks, verdict) for verdict in (Verdict.PASSED, Verdict.FAILED))
    return [
        (f"{passed} / {passed + failed}", "checks passed", f"{skipped} skipped" if skipped else ""),
        (f"{findings:,}", "findings" if findings != 1 else "finding", ""),
        (f"{as_expected:,} / {len(jobs):,}", "jobs as expected", f"{completed:,} completed"),
        (f"{good:,} / {len(pictures):,}", "pictures valid", ""),
        (words.seconds(report.seconds), "spent", ""),
    ]
