"""How the reports write numbers, moments and verdicts."""

from collections.abc import Sequence
from datetime import UTC, datetime

from stress.checks.outcome import CheckReport, KitReport, Verdict

INTERRUPTED = "interrupted"
"""Key in a report's settings: true if the kit was told to stop before its last check."""

_UNITS = {
    "per_s": "per s",
    "ms": "ms",
    "s": "s",
    "mib": "MiB",
    "mb": "MB",
    "bytes": "bytes",
    "percent": "%",
}


def figure_words(name: str) -> tuple[str, str]:
    """Split a figure's name into words and its unit: `submit_p99_ms` into ("submit p99", "ms")."""
    for ending, unit in _UNITS.items():
        if name.endswith(f"_{ending}"):
            return name.removesuffix(f"_{ending}").replace("_", " "), unit
    return name.replace("_", " "), ""


def number(value: float) -> str:
    """Write a measured number with three significant digits, or whole with separators where that has more."""
    # From 999.5 on `.3g` would write 1e+03.
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Write a duration as seconds, or minutes and seconds from two minutes on."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"


def moment(value: datetime) -> str:
    """Write a moment in UTC, to the second."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def was_interrupted(report: KitReport) -> bool:
    """Whether the kit was told to stop before its last check."""
    return report.settings.get(INTERRUPTED) is True


def count(checks: Sequence[CheckReport], verdict: Verdict) -> int:
    """Count the checks that ended so."""
    return sum(check.verdict is verdict for check in checks)


def plural(number: int, noun: str) -> str:
    """Write a number with its noun: 1 job, 2 jobs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def conclusion(report: KitReport) -> str:
    """Say in a sentence how it ended."""
    failed, passed = count(report.checks, Verdict.FAILED), count(report.checks, Verdict.PASSED)
    cut = "Interrupted: " if was_interrupted(report) else ""
    if failed:
        return f"{cut}{failed} of {plural(failed + passed, 'check')} failed"
    if passed:
        return f"{cut}all {plural(passed, 'check')} passed" if passed > 1 else f"{cut}the check passed"
    return f"{cut}nothing was checked"
