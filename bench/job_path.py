"""The way of a job, measured beside a constant and a naive app: all in one instance, in rounds, the order rotated."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench.config import Darkroom, Replicas, Yardstick, free_port, serve_config
from bench.connections import Session
from bench.instance import Instance, has_replicas
from bench.jobs import Order
from bench.load import burst
from bench.plan import Plan
from bench.receiver import Receiver, receiver
from bench.records import Calls, JobPath, ModeFigures, ProxyModeName, Run
from bench.rounds import HELD, NOOP, Progress, Rounds
from launcher.local import answer_at
from stress.submit_rate import bare_server


def measure_job_path(plan: Plan, modes: Sequence[ProxyModeName], home: Path, tell: Progress) -> JobPath:
    """Measure every mode and the load generator itself. Raises `BenchError`, `LaunchError`."""
    with bare_server() as url:
        tell("load generator against a bare server")
        bare = asyncio.run(_bare_rate(url, plan))
    with receiver() as callbacks:
        measured = [_measure_mode(plan, mode, home / mode, callbacks, tell) for mode in modes]
    fastest = max(_fastest(run) for mode in measured for run in mode.runs)
    return JobPath(
        jobs=plan.jobs,
        submitters=plan.submitters,
        pairs=plan.pairs,
        bare_server=bare,
        headroom=bare.per_s / fastest,
        modes=tuple(measured),
    )


def _fastest(run: Run) -> float:
    return max(calls.per_s for calls in (run.submits, run.polls, run.open_polls) if calls is not None)


async def _bare_rate(url: str, plan: Plan) -> Calls:
    async with Session() as session:
        await burst(session, Order().calls(url, plan.submitters), plan.submitters)
        return (await burst(session, Order().calls(url, plan.bare_requests), plan.submitters)).calls()


def _measure_mode(plan: Plan, mode: ProxyModeName, home: Path, callbacks: Receiver, tell: Progress) -> ModeFigures:
    tell(f"{mode} proxy: starting")
    darkroom = Darkroom(home / "darkroom", ((NOOP, Replicas()), (HELD, Replicas())))
    yardsticks = (
        Yardstick("constant", "bench.constant_app:app"),
        Yardstick("naive", "bench.naive_app:build", {"folder": str(home / "naive")}),
    )
    with Instance(serve_config(free_port(), darkroom, *yardsticks), home, mode) as instance:
        instance.wait_until("all apps answer", lambda: _answers(instance.url))
        figures = asyncio.run(Rounds(plan, instance, callbacks, tell).measure())
    return figures.model_copy(update={"left_running": instance.left_running})


def _answers(url: str) -> bool:
    if not has_replicas(url):
        return False
    # A job that does not exist: the naive app says so as soon as its tracker lives.
    for path, status in (("constant", 200), ("naive/inference/status/none", 404)):
        answer = answer_at(f"{url}/{path}")
        if answer is None or answer.status_code != status:
            return False
    return True
