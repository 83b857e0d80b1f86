"""`python -m tests.chaos`: the long run. Prints what broke and how long recovery took; exits 1 if a promise broke."""

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from tests.chaos.audit import Ended, Violation, audit
from tests.chaos.faults import Disturbance, Kind, schedule
from tests.chaos.load import FINAL, Accepted, Journal, Load, references, seen
from tests.chaos.recovery import Recovery, measure, summary
from tests.chaos.work import QUICK, REAL, Work
from tests.chaos.world import World

SETTLE_S = 300.0
"""How long the last jobs and callbacks may take when nothing is done any more."""
PAUSE_S = 4.0

console = Console()


def main(
    minutes: Annotated[float, typer.Option(help="How long things are done.")] = 30.0,
    seed: Annotated[int | None, typer.Option(help="Repeats the order of an earlier run.")] = None,
    rate: Annotated[float | None, typer.Option(help="Jobs a second. [default: 2.5, with --quick 15]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Pictures of milliseconds, several jobs in a call.")] = False,
    only: Annotated[list[Kind] | None, typer.Option(help="Only these kinds of processes.")] = None,
    sqlite: Annotated[bool, typer.Option("--sqlite", help="The default store; without a database server.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.")] = None,
) -> None:
    """Kill and stop processes of a Darkroom under load, then audit every job that was accepted."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console.print(f"seed {seed}")
    work = QUICK if quick else REAL
    if rate is not None:
        work = replace(work, rate=rate)
    journal, recoveries, disturbances = Journal(), [], []
    with tempfile.TemporaryDirectory(prefix="dk-chaos-") as home, _world(Path(home), minutes, work, sqlite) as world:
        with world.http() as http:
            right = references(http, work)
            world.note_final_states()
            with Load(world, right, journal, work=work, seed=seed):
                ends = time.monotonic() + minutes * 60
                for fault in schedule(only or world.kinds, seed):
                    if time.monotonic() > ends:
                        break
                    moment = world.do(fault)
                    disturbances.append(Disturbance(fault.kind, moment))
                    recoveries.append(measure(http, work, right, journal, fault, moment))
                    console.print(f"{len(journal.accepted):5} jobs  {recoveries[-1]}")
                    # What was stopped goes on before the next thing is done, so that each can be told apart.
                    world.mend()
                    time.sleep(PAUSE_S)
            ended = _settle(http, journal.accepted)
            written = world.final_states()
        callbacks = world.receiver.entries()
        violations = audit(journal.accepted, ended, journal.finals, written, callbacks, disturbances)
        violations += _of_files(world, set(right.values()))
        together = world.calls_with_several_jobs()
        if work.together and not together:
            violations.append(Violation("no call with several jobs", "", "The run has shown nothing of them."))
    _report(seed, journal.accepted, recoveries, violations, together, out)
    raise typer.Exit(1 if violations else 0)


def _world(home: Path, minutes: float, work: Work, sqlite: bool) -> World:
    # Every callback is needed for the audit, repeats and probes too.
    most_callbacks = int(minutes * 60 * work.rate * 4) + 10_000
    return World(home, postgresql=not sqlite, most_callbacks=most_callbacks, models=work.models)


def _settle(http: httpx.Client, accepted: Sequence[Accepted]) -> dict[str, Ended]:
    """Wait until every job has ended and its callback is final, or the time for it is over."""
    deadline = time.monotonic() + SETTLE_S
    found = {}
    for job in accepted:
        status: dict[str, Any] = {}
        while True:
            left_s = deadline - time.monotonic()
            answer = _asked(http, f"/inference/status/{job.job_id}?wait={max(0.0, min(25.0, left_s)):.0f}")
            if answer is not None and answer.status_code == 200:
                status = answer.json()
            over = answer is not None and answer.status_code == 404
            if over or (status and status["status"] in FINAL and status["callback"]["final"]) or left_s < 0:
                break
            time.sleep(0.5)
        if not status:
            found[job.job_id] = Ended(None, None, None)
            continue
        picture = _asked(http, f"/inference/result/{job.job_id}")
        digest = sha256(picture.content).hexdigest() if picture is not None and picture.status_code == 200 else None
        found[job.job_id] = Ended(seen(status), digest, (status["callback"] or {}).get("status"))
    return found


def _asked(http: httpx.Client, path: str) -> httpx.Response | None:
    """Return the answer, if one comes."""
    with suppress(httpx.TransportError):
        return http.get(path)
    return None


def _of_files(world: World, right: set[str]) -> list[Violation]:
    """Every file that has a picture's name is a whole and right picture, also those that no job names."""
    wrong = (file for file in world.files() if sha256(file.read_bytes()).hexdigest() not in right)
    return [Violation("file that is no right picture", file.name) for file in wrong]


def _report(
    seed: int,
    accepted: Sequence[Accepted],
    recoveries: Sequence[Recovery],
    violations: Sequence[Violation],
    together: int,
    out: Path | None,
) -> None:
    table = Table(
        "process", "done", "times", "accepts p50", "max", "picture p50", "max", title=f"recovery, s (seed {seed})"
    )
    rows = summary(recoveries)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    counts = Counter(violation.what for violation in violations)
    console.print(f"{len(accepted)} jobs accepted, {len(recoveries)} faults, broken promises: {dict(counts) or 'none'}")
    console.print(f"{together} calls of several jobs")
    for violation in violations[:20]:
        console.print(f"  {violation}")
    if out is not None:
        figures = {
            "seed": seed,
            "accepted": len(accepted),
            "faults": len(recoveries),
            "broken": counts,
            "calls_of_several_jobs": together,
            "recovery": rows,
        }
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
