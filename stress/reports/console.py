"""The report for whoever runs the kit: specified lines on standard output, live progress on standard error."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from stress.checks.outcome import CheckReport, KitReport, Verdict
from stress.reports import words
from stress.wire import JobState, JobStatus

# A service's words must not steer the terminal: C0 and C1 control characters (line breaks and tabs excepted), and
# those that turn the direction of writing.
_STEERING = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = {code: "\ufffd" for code in _STEERING if chr(code) not in "\n\t"}

PIPE_WIDTH = 160

_MARKS = {
    Verdict.PASSED: Text("✓ passed", "green"),
    Verdict.FAILED: Text("✗ failed", "bold red"),
    Verdict.SKIPPED: Text("- skipped", "dim"),
}


@dataclass
class _Running:
    """A check that runs: its bar, and where its jobs stand."""

    bar: TaskID
    expected: int
    states: dict[str, JobState] = field(default_factory=dict)
    submitted: int = 0
    ended: int = 0
    bad: int = 0

    def words(self) -> str:
        """Say where the jobs stand."""
        now = Counter(state.value for state in self.states.values())
        parts = [f"{self.submitted} submitted", *(f"{count} {state}" for state, count in now.items())]
        return ", ".join([*parts, f"{self.bad} bad"] if self.bad else parts)


class ConsoleProgress:
    """Tells a person what the checks do; use it as a context manager.

    Lines go to standard output unchanged but for control characters. The bars are drawn on standard error if that
    is a terminal and `live` is true, and leave nothing behind.
    """

    def __init__(self, *, live: bool = True) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[check]}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[states]}", markup=False),
            console=console,
            transient=True,
            # The lines belong to standard output, which may be a pipe; rich would send them to the bars' console.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not (live and console.is_terminal),
        )
        self._running: dict[str, _Running] = {}

    @property
    def console(self) -> Console:
        """Where the bars are, for whoever else writes to standard error while they are drawn."""
        return self._bars.console

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """Print a line of the report on standard output."""
        shares_terminal = not self._bars.disable and sys.stdout.isatty()
        if shares_terminal:
            self._bars.stop()
        print_line(text)
        if shares_terminal:
            self._bars.start()

    def check_started(self, name: str, title: str, jobs: int) -> None:
        """Show a bar for the check, which will submit about so many jobs."""
        bar = self._bars.add_task(title, total=jobs or None, check=plain(name), states="")
        self._running[name] = _Running(bar, jobs)

    def job_submitted(self, check: str, job_id: str) -> None:
        """Count a job that was accepted."""
        running = self._running.get(check)
        if running is None:
            return
        running.submitted += 1
        running.states[job_id] = JobState.QUEUED
        self._show(running)

    def job_moved(self, check: str, job_id: str, status: JobStatus) -> None:
        """Note a job's new state."""
        running = self._running.get(check)
        if running is None or job_id not in running.states:
            return
        running.states[job_id] = status.status
        self._show(running)

    def job_ended(self, check: str, job_id: str, *, good: bool) -> None:
        """Count a job of which all is known."""
        running = self._running.get(check)
        if running is None:
            return
        running.states.pop(job_id, None)
        running.ended += 1
        running.bad += not good
        self._show(running)

    def check_ended(self, report: CheckReport) -> None:
        """Take the check's bar away."""
        running = self._running.pop(report.name, None)
        if running is not None:
            self._bars.remove_task(running.bar)

    def unfinished(self) -> list[str]:
        """Say of the checks that began and did not end where their jobs stand."""
        return [f"{running.words()}, {running.ended} finished" for running in self._running.values()]

    def _show(self, running: _Running) -> None:
        # Some checks submit more than they announced, when the first answers call for it.
        total = max(running.expected, running.submitted) or None
        self._bars.update(running.bar, completed=running.ended, total=total, states=running.words())


def plain(text: str) -> str:
    """Replace control characters, which would steer the terminal."""
    return text.translate(_CONTROLS)


def print_line(text: str = "") -> None:
    """Write one line to standard output at once, so that it is seen through a pipe too."""
    encoding = sys.stdout.encoding or "utf-8"
    # A service's words must not pass for further lines of the report.
    shown = plain(text).replace("\n", " ").encode(encoding, "replace").decode(encoding)
    sys.stdout.write(f"{shown}\n")
    sys.stdout.flush()


def print_problem(sentence: str) -> None:
    """Write why the kit cannot go on to standard error."""
    Console(stderr=True).print(Text(plain(sentence), "red"), soft_wrap=True)


def print_summary(report: KitReport) -> None:
    """Print the specified summary: how many checks, how many passed, and where the receiver's dashboard is."""
    counted = [check for check in report.checks if check.verdict is not Verdict.SKIPPED]
    print_line()
    print_line("📊 Test Summary:")
    print_line(f"- Total tests: {len(counted)}")
    print_line(f"- Passed: {words.count(counted, Verdict.PASSED)}")
    print_line(f"- Callback dashboard: {report.callback_base}")


def print_table(report: KitReport) -> None:
    """Print every check with its verdict, its time and its first finding."""
    table = Table(title=None, expand=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    table.add_column("Time", justify="right", no_wrap=True)
    table.add_column("First finding", overflow="fold")
    for check in report.checks:
        table.add_row(Text(plain(check.name)), _MARKS[check.verdict], words.seconds(check.seconds), _first(check))
    print_line()
    print_wide(table)


def print_wide(table: Table) -> None:
    """Print a table on standard output, as wide as the terminal."""
    console = Console()
    if not console.is_terminal:
        # A pipe has no width of its own, and a file is read in wider windows than 80 columns.
        console = Console(width=PIPE_WIDTH)
    console.print(table)


def _first(check: CheckReport) -> Text:
    if not check.findings:
        return Text(plain(check.note or ""), "dim")
    first = check.findings[0]
    more = f" (and {len(check.findings) - 1} more)" if len(check.findings) > 1 else ""
    return Text(plain(f"{first.fault}: {first.sentence}{more}"))
