"""A steady rate of jobs for a time: does the service keep up, and do its latency and memory stay where they are?"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path

from stress.checks.figures import latencies
from stress.checks.group import rate
from stress.checks.guard import guarded
from stress.checks.jobs import JobRun, Watch
from stress.checks.load import PROMPTS
from stress.checks.memory import HealthMemory, MemorySource
from stress.checks.outcome import CheckReport, Fault, Finding, JobTrace
from stress.checks.session import Session
from stress.checks.strays import surplus
from stress.checks.trends import Allowance, Curve, thinned, trend

SOAK_SEED = 10_000
MAX_IN_FLIGHT = 64
MAX_LATENESS = 0.01
"""Part of the jobs that may be left out, because too many were open, before that is a finding."""
LATENCY_ALLOWANCE = Allowance(fraction=0.5, floor=1.0)
"""By how much a latency (seconds) may rise over the last two thirds."""
MEMORY_ALLOWANCE = Allowance(fraction=0.1, floor=64.0)
"""By how much the memory (MiB) may rise over the last two thirds: allocators and caches take their share late."""
MEMORY_SAMPLES = 400
MIN_SAMPLE_INTERVAL_S = 0.25
SHOWN_POINTS = 500
SHOWN_JOBS = 100
"""Good jobs in the report; the figures are of all."""
SHOWN_TROUBLED_JOBS = 1000
"""Jobs with findings that are in the report and whose pictures are kept; their findings are of all."""
_MIB = 1024 * 1024

logger = logging.getLogger(__name__)


async def check_soak(
    session: Session,
    *,
    rate_per_s: float,
    duration_s: float,
    max_in_flight: int = MAX_IN_FLIGHT,
    memory: MemorySource | None = None,
    latency_allowance: Allowance = LATENCY_ALLOWANCE,
    memory_allowance: Allowance = MEMORY_ALLOWANCE,
) -> CheckReport:
    """Submit a job every 1 / `rate_per_s` seconds for `duration_s`, however the service fares, then await them all.

    A job that falls due while `max_in_flight` are open is left out and counted: a service that cannot keep up is
    not buried. Each job is checked as in every other check. `memory` is read beside; by default it is what the
    service states in its health.

    Raises:
        ValueError: a rate, duration or bound that is not above 0.
    """
    if min(rate_per_s, duration_s, max_in_flight) <= 0:
        raise ValueError("rate_per_s, duration_s and max_in_flight must be above 0.")
    title = f"{rate_per_s:g} jobs per second for {duration_s:g} s"

    async def body(watch: Watch) -> CheckReport:
        soak = _Soak(watch, max_in_flight)

        def report() -> CheckReport:
            findings = [*soak.findings, *soak.left_out(), *_growing(soak.curves, latency_allowance, memory_allowance)]
            note = (
                None
                if soak.curves["memory_mib"]
                else "Memory was not measured: the service states none. Name its processes or its page of metrics."
            )
            made = watch.report("soak", title, [], findings=findings, figures=soak.figures(), note=note)
            series = {name: _shown(curve) for name, curve in soak.curves.items() if curve}
            return made.model_copy(update={"jobs": soak.shown_jobs(), "series": series})

        def partial() -> CheckReport:
            for run in watch.runs:
                soak.keep(run)
            return report()

        watch.partial = partial
        source = memory or HealthMemory(session.client)
        sampling = asyncio.create_task(soak.sample(source, max(duration_s / MEMORY_SAMPLES, MIN_SAMPLE_INTERVAL_S)))
        try:
            await soak.submit_all(rate_per_s, duration_s)
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
        await asyncio.sleep(session.budgets.quiet_s)
        late = surplus({trace.job_id: [trace] for trace in soak.traces}, await session.inbox.entries())
        known = {(finding.fault, finding.job_id) for finding in soak.findings}
        soak.findings += [finding for finding in late if (finding.fault, finding.job_id) not in known]
        return report()

    return await guarded(session, "soak", title, max(round(rate_per_s * duration_s), 1), body)


@dataclass
class _Soak:
    watch: Watch
    max_in_flight: int
    traces: list[JobTrace] = field(default_factory=list)
    shown: list[JobTrace] = field(default_factory=list)
    kept: Counter[bool] = field(default_factory=Counter)
    """How many good jobs (True) and jobs with findings (False) there were."""
    findings: list[Finding] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    due: int = 0
    omitted: int = 0
    latest_s: float = 0.0
    curves: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {"submit_s": [], "final_s": [], "callback_s": [], "in_flight": [], "memory_mib": []}
    )

    async def submit_all(self, rate_per_s: float, duration_s: float) -> None:
        """Submit on schedule, and return when every job has ended."""
        began_s = self.watch.now_s()
        async with asyncio.TaskGroup() as jobs:
            for number, prompt in zip(count(), cycle(PROMPTS)):
                due_s = began_s + number / rate_per_s
                if due_s >= began_s + duration_s:
                    break
                await asyncio.sleep(max(due_s - self.watch.now_s(), 0.0))
                self.latest_s = max(self.latest_s, self.watch.now_s() - due_s)
                self.due += 1
                if self.in_flight >= self.max_in_flight:
                    self.omitted += 1
                    continue
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                jobs.create_task(self._one(number, prompt))

    async def sample(self, memory: MemorySource, interval_s: float) -> None:
        """Read memory and open jobs until cancelled."""
        while True:
            try:
                taken = await memory.read_bytes()
            except Exception:
                # A curve with a gap is better than a night without its report.
                logger.warning("memory could not be read", exc_info=True)
                taken = None
            if taken is not None:
                self.curves["memory_mib"].append((self.watch.now_s(), taken / _MIB))
            self.curves["in_flight"].append((self.watch.now_s(), float(self.in_flight)))
            await asyncio.sleep(interval_s)

    async def _one(self, number: int, prompt: str) -> None:
        try:
            ahead = self.in_flight
            request = self.watch.request(seed=SOAK_SEED + number, label=f"{number}", prompt=prompt, jobs_ahead=ahead)
            run = await self.watch.submit(request, label=f"seed {request.seed}", jobs_ahead=ahead)
            await self.watch.follow(run, jobs_ahead=ahead)
            await self.watch.collect(run)
            self.keep(run)
        finally:
            self.in_flight -= 1

    def keep(self, run: JobRun) -> None:
        """Keep what the report needs: a soak for a night must not fill memory and disk with pictures."""
        self.watch.forget(run)
        self.watch.session.seen.note(run)
        trace = run.trace
        if trace is None:
            return
        self.findings += run.findings
        self.kept[run.good] += 1
        if self.kept[run.good] > (SHOWN_JOBS if run.good else SHOWN_TROUBLED_JOBS):
            if trace.picture is not None and trace.picture.path is not None:
                Path(trace.picture.path).unlink(missing_ok=True)
            trace = trace.model_copy(update={"picture": None, "status": None, "request": {}})
        else:
            self.shown.append(trace)
        self.traces.append(trace)
        at_s = trace.submitted_s
        if trace.accepted:
            self.curves["submit_s"].append((at_s, trace.submit_took_s))
        if trace.final_s is not None:
            self.curves["final_s"].append((at_s, trace.final_s - at_s))
        if trace.callback_s is not None:
            self.curves["callback_s"].append((at_s, trace.callback_s - at_s))

    def left_out(self) -> list[Finding]:
        """Say that the service did not keep up, if so many jobs were left out."""
        if self.omitted <= MAX_LATENESS * self.due:
            return []
        sentence = (
            f"The service did not keep up: {self.omitted} of {self.due} jobs were left out because "
            f"{self.max_in_flight} were open when they fell due."
        )
        return [Finding(fault=Fault.SLOW_ANSWER, sentence=sentence)]

    def figures(self) -> dict[str, float]:
        """Return the figures of all jobs, whether they are shown or not."""
        failed = {finding.job_id for finding in self.findings}
        final = sum(trace.final_s is not None for trace in self.traces)
        figures = {
            **latencies(self.traces),
            **rate(self.traces),
            "jobs_due": float(self.due),
            "jobs_final": float(final),
            "jobs_left_out": float(self.omitted),
            "jobs_with_findings": float(len(failed)),
            "most_jobs_open": float(self.most_in_flight),
            # How late the kit itself was: above some milliseconds this machine is the limit.
            "schedule_lag_max_ms": round(1000 * self.latest_s, 3),
        }
        memory = self.curves["memory_mib"]
        if memory:
            figures |= {"memory_first_mib": round(memory[0][1], 1), "memory_last_mib": round(memory[-1][1], 1)}
        return figures

    def shown_jobs(self) -> tuple[JobTrace, ...]:
        """Return a bounded number of jobs, in order of time."""
        there = {trace.job_id for trace in self.shown}
        late = {finding.job_id for finding in self.findings} - there
        added = [trace for trace in self.traces if trace.job_id in late][: SHOWN_TROUBLED_JOBS - self.kept[False]]
        return tuple(sorted([*self.shown, *added], key=lambda trace: trace.submitted_s))


def _growing(curves: Mapping[str, Curve], latency: Allowance, memory: Allowance) -> Iterable[Finding]:
    looked_at = (
        ("submit_s", "The time that a submit takes", "s", Fault.GROWING_LATENCY, latency),
        ("final_s", "The time to the final status", "s", Fault.GROWING_LATENCY, latency),
        ("memory_mib", "The memory of the service", "MiB", Fault.GROWING_MEMORY, memory),
    )
    for name, what, unit, fault, allowance in looked_at:
        found = trend(curves[name])
        if found is not None and allowance.exceeded_by(found):
            yield Finding(
                fault=fault,
                sentence=(
                    f"{what} rose by {found.rise:.3g} {unit} (from {found.level:.3g} {unit}) in the last "
                    f"{found.seconds:.0f} s; allowed is the larger of {allowance.fraction:.0%} "
                    f"and {allowance.floor:g} {unit}."
                ),
            )


def _shown(curve: Curve) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(at_s), 3), round(float(value), 4)) for at_s, value in thinned(curve, SHOWN_POINTS))
