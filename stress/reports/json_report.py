"""The report for programs: the records themselves."""

from pathlib import Path

from stress.checks.outcome import KitReport


def write_json(report: KitReport, path: Path) -> None:
    """Write the report as JSON; `KitReport.model_validate_json` reads it back. Raises OSError."""
    path.write_text(report.model_dump_json(indent=2), encoding="utf-8")
