"""How long it takes after a fault until a job is accepted, and until a picture is there."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx

from tests.chaos.faults import Action, Fault, Kind
from tests.chaos.load import Accepted, Journal, submit
from tests.chaos.work import Work

PAUSE_S = 0.1
PICTURE_WITHIN_S = 240.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from the fault until a job that was submitted at once was accepted, and until its picture was there."""

    fault: Fault
    accepted_s: float
    picture_s: float


def measure(
    http: httpx.Client, work: Work, right: dict[str, str], journal: Journal, fault: Fault, began: float
) -> Recovery:
    """Submit a job and wait for its picture. `began` is the moment of the fault, in seconds since 1970.

    The job is audited with the others; it has no callback.
    """
    prompt = next(iter(right))
    job_id = submit(http, work.asked(prompt))
    accepted_s = time.time() - began
    with journal.lock:
        journal.accepted.append(Accepted(job_id, time.time(), right[prompt], calls_back=False))
    while time.time() - began < PICTURE_WITHIN_S:
        try:
            if http.get(f"/inference/status/{job_id}").json()["status"] == "completed":
                return Recovery(fault, accepted_s, time.time() - began)
        except (httpx.TransportError, ValueError, KeyError):
            pass  # Its server is away: that is what is measured.
        time.sleep(PAUSE_S)
    raise RuntimeError(f"No picture came within {PICTURE_WITHIN_S:g} s of {fault}.")


def summary(recoveries: Iterable[Recovery]) -> list[dict[str, Any]]:
    """Return p50 and maximum for each kind, action and length of a stop."""
    groups: dict[tuple[Kind, Action, float], list[Recovery]] = {}
    for one in recoveries:
        groups.setdefault((one.fault.kind, one.fault.action, one.fault.stop_s), []).append(one)
    return [
        {
            "kind": kind.value,
            "action": action.value if action is Action.KILL else f"stop {stop_s:g} s",
            "count": len(group),
            "accepted_p50_s": round(median(one.accepted_s for one in group), 2),
            "accepted_max_s": round(max(one.accepted_s for one in group), 2),
            "picture_p50_s": round(median(one.picture_s for one in group), 2),
            "picture_max_s": round(max(one.picture_s for one in group), 2),
        }
        for (kind, action, stop_s), group in sorted(groups.items())
    ]
