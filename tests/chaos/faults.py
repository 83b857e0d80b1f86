"""What may be done to whom, and in which order."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A kind of process."""

    TRACKER = "tracker"
    INGRESS = "ingress"
    MODEL = "model"
    PROXY = "proxy"
    CONTROLLER = "controller"
    INSTANCE = "instance"
    POSTGRESQL = "postgresql"
    RECEIVER = "receiver"


class Action(StrEnum):
    """KILL is SIGKILL. STOP is SIGSTOP, and SIGCONT after a while."""

    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done; `stop_s` is how long a stopped process is left so."""

    kind: Kind
    action: Action
    stop_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A fault that was done, `at` in seconds since 1970, to that kind of process."""

    kind: Kind
    at: float


STOPS_S = (2.0, 25.0)
"""Shorter and longer than a lease (15 s) and the time after which a silent tracker is replaced (10 s)."""


def faults_of(kinds: Sequence[Kind]) -> tuple[Fault, ...]:
    """Return each fault that these kinds of processes can meet."""
    killed = [Fault(kind, Action.KILL) for kind in kinds]
    # A whole instance that stands still is its machine that does, and its callers with it.
    stopped = [Fault(kind, Action.STOP, stop_s) for kind in kinds if kind is not Kind.INSTANCE for stop_s in STOPS_S]
    return (*killed, *stopped)


def schedule(kinds: Sequence[Kind], seed: int) -> Iterator[Fault]:
    """Yield faults for ever: every one once in a random order, then again in another."""
    order = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    faults = list(faults_of(kinds))
    while True:
        order.shuffle(faults)
        yield from faults
