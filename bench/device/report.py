"""Where the results go while a run is under way: a run that is cut short keeps what it has measured."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from bench.device.results import Results, write_results
from bench.device.tables import colour_of


class ResultsUnwritable(Exception):
    """The results cannot be written: nothing is gained by measuring more."""


class Report:
    """Prints the verdicts of each part when it is over, and writes all results so far to `output`."""

    def __init__(self, console: Console, output: Path) -> None:
        self._console = console
        self._output = output
        self._printed = 0

    def status(self, text: str) -> Status:
        """Return a context in which the console says what runs now."""
        return self._console.status(text)

    def update(self, results: Results) -> None:
        """Write the file and print the verdicts that are new. Raises ResultsUnwritable."""
        try:
            write_results(results, self._output)
        except OSError as error:
            raise ResultsUnwritable(
                f"{self._output} cannot be written ({error.strerror}). Choose another --output."
            ) from error
        for verdict in results.verdicts[self._printed :]:
            colour = colour_of(verdict)
            self._console.print(
                f"{verdict.subject}: {verdict.check} [{colour}]{verdict.outcome}[/{colour}]. {escape(verdict.sentence)}"
            )
        self._printed = len(results.verdicts)
