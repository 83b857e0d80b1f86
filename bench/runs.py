"""A run: so many jobs of one system, from the first submit to the last final state, and a poll of each."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from bench.connections import Session
from bench.jobs import Order, ended, ids_of, moment, statuses
from bench.load import burst
from bench.processes import CpuMeter
from bench.receiver import Receiver
from bench.records import Run

CALLBACKS_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is run: `count` jobs like `order` at the service `url`, by `submitters` callers. `system` names it."""

    system: str
    url: str
    order: Order
    count: int
    submitters: int


async def run_jobs(session: Session, asked: Asked, processes: Iterable[psutil.Process], callbacks: Receiver) -> Run:
    """Run the jobs, to the last callback if they have any. Processor time is that of `processes`.

    Raises `BenchError`.
    """
    processes = list(processes)
    cpu = CpuMeter(processes)
    submits = await burst(session, asked.order.calls(asked.url, asked.count), asked.submitters)
    job_ids = ids_of(submits)
    # One poller for the last job, so that watching does not cost what is watched.
    await ended(session, asked.url, job_ids[-1])
    received: dict[str, float] = {}
    if asked.order.callback_url:
        received = await asyncio.to_thread(callbacks.wait_for, job_ids, CALLBACKS_TIMEOUT_S)
    cpu_ms_per_job = cpu.ms_per(asked.count)
    cpu = CpuMeter(processes)
    polls, final = await statuses(session, asked.url, job_ids, asked.submitters)
    last = max([moment(status, "completed_at") for status in final] + list(received.values()))
    return Run(
        system=asked.system,
        jobs_per_s=asked.count / (last - submits.began),
        submits=submits.calls(),
        polls=polls.calls(),
        cpu_ms_per_job=cpu_ms_per_job,
        cpu_ms_per_poll=cpu.ms_per(asked.count),
    )
