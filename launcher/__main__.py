"""`python -m launcher serve|demo|stop`: what the Makefile calls."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from launcher.demo import run_demo
from launcher.local import LaunchError, LocalDarkroom, kill_instance

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Run Darkroom on this machine."
)

Config = Annotated[Path, typer.Option(help="The service's configuration.", exists=True, dir_okay=False)]
Home = Annotated[Path, typer.Option(help="Folder for data and logs of local runs.")]
_CONFIG = Path("serve_config.yaml")
_HOME = Path(".darkroom")


@app.command()
def serve(config: Config = _CONFIG, home: Home = _HOME) -> None:
    """Serve in the foreground, on a Ray instance of its own, until Ctrl-C or `stop`."""
    darkroom = LocalDarkroom(config, home)

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    with darkroom:
        darkroom.start()
        try:
            raise typer.Exit(darkroom.wait())
        except KeyboardInterrupt:
            # A second one must not leave Ray's processes behind: what follows is bounded.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            Console(stderr=True).print("Stopping Darkroom; open jobs stay in the store and go on at the next start.")


@app.command()
def demo(
    config: Config = _CONFIG,
    home: Home = _HOME,
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("out/demo.png"),
) -> None:
    """Render one picture and check that callback, polling and download bring the same bytes."""
    run_demo(config, home, picture)


@app.command()
def stop(home: Home = _HOME) -> None:
    """Stop what `serve` or `demo` started from this folder."""
    note = home / "instance"
    if not note.exists():
        Console().print("Nothing runs.")
        return
    count = kill_instance(note.read_text().strip())
    note.unlink(missing_ok=True)
    Console().print(f"Stopped ({count} processes). Open jobs go on at the next start.")


if __name__ == "__main__":
    try:
        app()
    except LaunchError as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        raise SystemExit(1) from None
