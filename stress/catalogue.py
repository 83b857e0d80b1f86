"""Which checks there are, by command, in the order in which they are made."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from stress.checks import protocol, strays
from stress.checks.contamination import check_contamination
from stress.checks.interference import check_interference
from stress.checks.load import check_rapid_concurrent, check_rapid_sequential
from stress.checks.memory import MemorySource
from stress.checks.negative import NEGATIVE_CHECKS
from stress.checks.outcome import CheckReport
from stress.checks.references import References
from stress.checks.session import Session
from stress.checks.soak import check_soak
from stress.checks.telling import Telling
from stress.kit_run import PlannedCheck

INTERFERENCE = "interference"


@dataclass(frozen=True)
class Amounts:
    """How many jobs the load checks submit."""

    concurrent: int
    sequential: int
    beside: int
    """Beside the long job of the interference check."""
    long_steps: int
    """Denoising steps of that long job."""


def _negative(check: Callable[[Session], Awaitable[CheckReport]]) -> PlannedCheck:
    # Their name is that of the function, and the first line of its words says what it demands.
    words = (check.__doc__ or "").splitlines()[0]
    name = check.__name__.removeprefix("check_").replace("_", "-")
    return PlannedCheck(name, words, lambda session, _: check(_telling(session)))


def _telling(session: Session) -> Session:
    """Return the session with one that prints the title and the verdict of each check."""
    return replace(session, progress=Telling(session.progress))


LATE_CALLBACKS = PlannedCheck(
    strays.NAME,
    "The callbacks of all jobs before, looked at once more: none missing, double, or a stranger's",
    strays.check_late_callbacks,
)

RUN_CHECKS = (
    PlannedCheck(protocol.NAME, protocol.TITLE, lambda session, _: protocol.check_protocol(session)),
    *(_negative(check) for check in NEGATIVE_CHECKS),
    replace(LATE_CALLBACKS, run=lambda session, before: strays.check_late_callbacks(_telling(session), before)),
)


def stress_checks(amounts: Amounts, *, references: References | None, interference: bool) -> tuple[PlannedCheck, ...]:
    """Return the load checks; with `references` every picture is compared with that of its request drawn alone."""
    checks = (
        PlannedCheck(
            "rapid-concurrent",
            f"{amounts.concurrent} jobs at once, each with its own whole picture and one callback",
            lambda session, _: check_rapid_concurrent(session, amounts.concurrent, references=references),
        ),
        PlannedCheck(
            "rapid-sequential",
            f"{amounts.sequential} jobs in rapid succession, with the named adapters in turn",
            lambda session, _: check_rapid_sequential(session, amounts.sequential, references=references),
        ),
        PlannedCheck(
            "contamination",
            "Every job its own picture, in orders in which one may leave traces in the next",
            lambda session, _: check_contamination(session, references=references),
        ),
        PlannedCheck(
            INTERFERENCE,
            f"A long job beside {amounts.beside} others that load adapters and are cancelled",
            lambda session, _: check_interference(
                session, amounts.beside, references=references, steps=amounts.long_steps
            ),
        ),
        LATE_CALLBACKS,
    )
    return tuple(check for check in checks if interference or check.name != INTERFERENCE)


def soak_checks(rate_per_s: float, duration_s: float, memory: MemorySource | None) -> tuple[PlannedCheck, ...]:
    """Return the check of a steady rate; `memory` None reads what the service states in its health."""
    return (
        PlannedCheck(
            "soak",
            f"{rate_per_s:g} jobs per second for {duration_s:g} s, with latency and memory over time",
            lambda session, _: check_soak(session, rate_per_s=rate_per_s, duration_s=duration_s, memory=memory),
        ),
        LATE_CALLBACKS,
    )
