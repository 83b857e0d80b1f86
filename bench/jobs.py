"""Jobs over HTTP: submitting them, and seeing them end, at any service of the asynchronous protocol."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.connections import Session
from bench.errors import BenchError
from bench.load import Burst, Call, burst, one

SETTLE_TIMEOUT_S = 300.0
# Moments are the service's own, so watching need not be close; each poll costs milliseconds of the shared cores.
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Order:
    """What every job of a run asks for."""

    width: int = 1024
    height: int = 1024
    steps: int = 20
    model: str | None = None
    callback_url: str | None = None

    def calls(self, url: str, count: int) -> list[Call]:
        """Return the submits of so many jobs at the service `url`."""
        return [Call("POST", f"{url}/inference", json.dumps(self._body(n)).encode()) for n in range(count)]

    def _body(self, n: int) -> dict[str, Any]:
        asked = {
            "prompt": f"a large red circle on a blue background, number {n}",
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            "seed": n,
            "model": self.model,
            "callback_url": self.callback_url,
        }
        return {name: value for name, value in asked.items() if value is not None}


def ids_of(submits: Burst) -> list[str]:
    """Return the ids of accepted jobs."""
    return [str(reply.json()["job_id"]) for reply in submits.replies]


def polls_of(url: str, job_ids: Sequence[str]) -> list[Call]:
    """Return one status call for each job."""
    return [Call("GET", f"{url}/inference/status/{job_id}") for job_id in job_ids]


async def ended(session: Session, url: str, job_id: str) -> dict[str, Any]:
    """Return the job's final status. Raises `BenchError` if it does not complete within five minutes."""
    (call,) = polls_of(url, [job_id])
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while time.monotonic() < deadline:
        status = (await one(session, call)).json()
        if status["status"] == "completed":
            return status
        if status["status"] not in {"queued", "processing"}:
            raise BenchError(f"The job {job_id} ended as {status['status']}: {status.get('error')}")
        await asyncio.sleep(_POLL_S)
    raise BenchError(f"The job {job_id} has not ended within {SETTLE_TIMEOUT_S:g} s.")


async def statuses(
    session: Session, url: str, job_ids: Sequence[str], at_once: int
) -> tuple[Burst, list[dict[str, Any]]]:
    """Poll every job once, and again those that have not ended. Returns the first polls, and all final statuses."""
    polls = await burst(session, polls_of(url, job_ids), at_once)
    seen = [reply.json() for reply in polls.replies]
    final = [
        status if status["status"] == "completed" else await ended(session, url, status["job_id"]) for status in seen
    ]
    return polls, final


def moment(status: dict[str, Any], name: str) -> float:
    """Return a timestamp of a status as seconds since the Unix epoch."""
    return datetime.fromisoformat(status[name]).timestamp()
