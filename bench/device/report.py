"""Where the results go while a run is under way: a run that is cut short keeps what it has measured."""

from pathlib import Path

from rich.console import Console
from rich.status import Status

from bench.device.results import Results, write_results
from bench.device.tables import colour_of


class Report:
    """Prints each verdict when it falls, and writes all results so far to `output` after each part."""

    def __init__(self, console: Console, output: Path) -> None:
        self._console = console
        self._output = output
        self._printed = 0

    def status(self, text: str) -> Status:
        """Return a context in which the console says what runs now."""
        return self._console.status(text)

    def update(self, results: Results) -> None:
        """Print the verdicts that are new and write the file. Raises OSError."""
        for verdict in results.verdicts[self._printed :]:
            colour = colour_of(verdict)
            self._console.print(
                f"{verdict.subject}: {verdict.check} [{colour}]{verdict.outcome}[/{colour}]. {verdict.sentence}"
            )
        self._printed = len(results.verdicts)
        write_results(results, self._output)
