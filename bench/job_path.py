"""The way of a job, measured beside a constant and a naive app: all in one instance, in rounds, the order rotated."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import httpx

from bench.config import Darkroom, Replicas, Yardstick, free_port, serve_config
from bench.instance import Instance
from bench.jobs import Order, ended, ids_of, moment, polls_of, statuses
from bench.load import Call, burst, load_generator, one
from bench.plan import Plan
from bench.processes import CpuMeter, listeners, memory
from bench.receiver import Receiver, receiver
from bench.records import Calls, JobPath, ModeFigures, ProxyModeName, Run
from bench.summary import ratios, summarise
from deployments.models import ModelSettings, SimulatedOptions
from launcher.local import health_at
from stress.submit_rate import bare_server

CALLBACKS_TIMEOUT_S = 300.0

_NOOP = ModelSettings(name="noop", engine="noop")
# One endless job is polled while it is open. A step is as long as the engine's watchdog allows it to be.
_HELD = ModelSettings(name="held", engine="simulated", simulated=SimulatedOptions(step_seconds=100.0))

Progress = Callable[[str], None]


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
    async with load_generator() as session:
        await burst(session, Order().calls(url, plan.submitters), plan.submitters)
        return (await burst(session, Order().calls(url, plan.bare_requests), plan.submitters)).calls()


def _measure_mode(plan: Plan, mode: ProxyModeName, home: Path, callbacks: Receiver, tell: Progress) -> ModeFigures:
    tell(f"{mode} proxy: starting")
    darkroom = Darkroom(home / "darkroom", ((_NOOP, Replicas()), (_HELD, Replicas())))
    yardsticks = (
        Yardstick("constant", "bench.constant_app:app"),
        Yardstick("naive", "bench.naive_app:build", {"folder": str(home / "naive")}),
    )
    with Instance(serve_config(free_port(), darkroom, *yardsticks), home, mode) as instance:
        instance.wait_until("all apps answer", lambda: _answers(instance.url))
        figures = asyncio.run(_Rounds(plan, instance, callbacks, tell).measure())
    return figures.model_copy(update={"left_running": instance.left_running})


def _answers(url: str) -> bool:
    health = health_at(url)
    if not health or not health["accepting"] or not all(m["running_replicas"] for m in health["models"].values()):
        return False
    # A job that does not exist: the naive app says so as soon as its tracker lives.
    for path, status in (("constant", 200), ("naive/inference/status/none", 404)):
        try:
            if httpx.get(f"{url}/{path}", timeout=5, trust_env=False).status_code != status:
                return False
        except httpx.HTTPError:
            return False
    return True


class _Rounds:
    def __init__(self, plan: Plan, instance: Instance, callbacks: Receiver, tell: Progress) -> None:
        self._plan = plan
        self._instance = instance
        self._callbacks = callbacks
        self._tell = tell
        self._systems = ("constant", "naive", "darkroom", "darkroom+callbacks")

    async def measure(self) -> ModeFigures:
        plan, mode = self._plan, self._instance.mode
        async with load_generator() as session:
            for system in self._systems:
                # Connections, caches and code paths that every later run finds ready.
                self._tell(f"{mode} proxy: warming up {system}")
                await self._run(session, system, 2 * plan.submitters)
            runs: list[Run] = []
            for n in range(plan.pairs):
                turn = n % len(self._systems)
                for system in self._systems[turn:] + self._systems[:turn]:
                    self._tell(f"{mode} proxy: round {n + 1} of {plan.pairs}, {system}")
                    runs.append(await self._run(session, system, plan.jobs))
        processes = self._instance.processes()
        return ModeFigures(
            mode=mode,
            systems=tuple(summarise([run for run in runs if run.system == name]) for name in self._systems),
            ratios=ratios(runs),
            memory=memory(processes),
            listeners=listeners(processes),
            haproxy_files=self._instance.haproxy_files(),
            left_running=(),
            runs=tuple(runs),
        )

    async def _run(self, session: aiohttp.ClientSession, system: str, count: int) -> Run:
        if system == "constant":
            return await self._run_constant(session, count)
        if system == "naive":
            return await self._run_jobs(session, system, f"{self._instance.url}/naive", Order(), count)
        order = Order(model=_NOOP.name, callback_url=self._callbacks.url if "callbacks" in system else None)
        run = await self._run_jobs(session, system, self._instance.url, order, count)
        return run if order.callback_url else await self._with_open_polls(session, run, count)

    async def _run_constant(self, session: aiohttp.ClientSession, count: int) -> Run:
        cpu = self._cpu()
        calls = Order().calls(f"{self._instance.url}/constant", count)
        requests = (await burst(session, calls, self._plan.submitters)).calls()
        return Run(system="constant", jobs_per_s=requests.per_s, submits=requests, cpu_ms_per_job=cpu.ms_per(count))

    async def _run_jobs(self, session: aiohttp.ClientSession, system: str, url: str, order: Order, count: int) -> Run:
        cpu = self._cpu()
        submits = await burst(session, order.calls(url, count), self._plan.submitters)
        job_ids = ids_of(submits)
        # One poller for the last job, so that watching does not cost what is watched.
        await ended(session, url, job_ids[-1])
        received: dict[str, float] = {}
        if order.callback_url:
            received = await asyncio.to_thread(self._callbacks.wait_for, job_ids, CALLBACKS_TIMEOUT_S)
        cpu_ms_per_job = cpu.ms_per(count)
        cpu = self._cpu()
        polls, final = await statuses(session, url, job_ids, self._plan.submitters)
        last = max([moment(status, "completed_at") for status in final] + list(received.values()))
        return Run(
            system=system,
            jobs_per_s=count / (last - submits.began),
            submits=submits.calls(),
            polls=polls.calls(),
            cpu_ms_per_job=cpu_ms_per_job,
            cpu_ms_per_poll=cpu.ms_per(count),
        )

    async def _with_open_polls(self, session: aiohttp.ClientSession, run: Run, count: int) -> Run:
        """Add polls of a job that is being rendered all the while."""
        url = self._instance.url
        (submit,) = Order(model=_HELD.name).calls(url, 1)
        job_id = str(json.loads((await one(session, submit)).body)["job_id"])
        cpu = self._cpu()
        polls = await burst(session, polls_of(url, [job_id]) * count, self._plan.submitters)
        used = cpu.ms_per(count)
        await one(session, Call("DELETE", f"{url}/inference/{job_id}"))
        return run.model_copy(update={"open_polls": polls.calls(), "cpu_ms_per_open_poll": used})

    def _cpu(self) -> CpuMeter:
        return CpuMeter(self._instance.processes())
