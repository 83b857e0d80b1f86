"""Rounds of measurements: each system in turn, the order rotated, with what a run of each consists of."""

import json
from collections.abc import Callable
from typing import Protocol

import psutil

from bench.connections import Session
from bench.jobs import Order, polls_of
from bench.load import Call, burst, one
from bench.plan import Plan
from bench.processes import CpuMeter, listeners, memory
from bench.receiver import Receiver
from bench.records import ModeFigures, ProxyModeName, Run
from bench.runs import Asked, run_jobs
from bench.summary import ratios, summarise
from deployments.models import ModelSettings, SimulatedOptions

NOOP = ModelSettings(name="noop", engine="noop")
HELD = ModelSettings(name="held", engine="simulated", simulated=SimulatedOptions(step_seconds=100.0))
"""One endless job is polled while it is open. A step is as long as the engine's watchdog allows it to be."""

COMPARED = (("darkroom", "constant"), ("darkroom", "naive"), ("darkroom+callbacks", "constant"))
"""Which rate is divided by which."""

Progress = Callable[[str], None]


class Measured(Protocol):
    """Where Darkroom answers at `url`, with the models `NOOP` and `HELD`, and the yardsticks below it."""

    @property
    def url(self) -> str:
        """Darkroom's address; the yardsticks' are `<url>/constant` and `<url>/naive`."""

    @property
    def mode(self) -> ProxyModeName:
        """The proxy in front of them."""

    def processes(self) -> list[psutil.Process]:
        """Return the processes whose time and memory are counted."""

    def haproxy_files(self) -> tuple[str, ...]:
        """Return the names of HAProxy's files."""


class Rounds:
    """Measures one instance."""

    def __init__(self, plan: Plan, instance: Measured, callbacks: Receiver, tell: Progress) -> None:
        self._plan = plan
        self._instance = instance
        self._callbacks = callbacks
        self._tell = tell
        self._systems = ("constant", "naive", "darkroom", "darkroom+callbacks")

    async def measure(self) -> ModeFigures:
        """Warm up, measure every system in every round, and sum up. Raises `BenchError`."""
        plan, mode = self._plan, self._instance.mode
        async with Session() as session:
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
            ratios=ratios(runs, COMPARED),
            memory=memory(processes),
            listeners=listeners(processes),
            haproxy_files=self._instance.haproxy_files(),
            left_running=(),
            runs=tuple(runs),
        )

    async def _run(self, session: Session, system: str, count: int) -> Run:
        if system == "constant":
            return await self._run_constant(session, count)
        if system == "naive":
            return await self._jobs_of(session, system, f"{self._instance.url}/naive", Order(), count)
        order = Order(model=NOOP.name, callback_url=self._callbacks.url if "callbacks" in system else None)
        run = await self._jobs_of(session, system, self._instance.url, order, count)
        return run if order.callback_url else await self._with_open_polls(session, run, count)

    async def _run_constant(self, session: Session, count: int) -> Run:
        cpu = self._cpu()
        calls = Order().calls(f"{self._instance.url}/constant", count)
        requests = (await burst(session, calls, self._plan.submitters)).calls()
        return Run(system="constant", jobs_per_s=requests.per_s, submits=requests, cpu_ms_per_job=cpu.ms_per(count))

    async def _jobs_of(self, session: Session, system: str, url: str, order: Order, count: int) -> Run:
        asked = Asked(system, url, order, count, self._plan.submitters)
        return await run_jobs(session, asked, self._instance.processes(), self._callbacks)

    async def _with_open_polls(self, session: Session, run: Run, count: int) -> Run:
        """Add polls of a job that is being rendered all the while."""
        url = self._instance.url
        (submit,) = Order(model=HELD.name).calls(url, 1)
        job_id = str(json.loads((await one(session, submit)).body)["job_id"])
        cpu = self._cpu()
        polls = await burst(session, polls_of(url, [job_id]) * count, self._plan.submitters)
        used = cpu.ms_per(count)
        await one(session, Call("DELETE", f"{url}/inference/{job_id}"))
        return run.model_copy(update={"open_polls": polls.calls(), "cpu_ms_per_open_poll": used})

    def _cpu(self) -> CpuMeter:
        return CpuMeter(self._instance.processes())
