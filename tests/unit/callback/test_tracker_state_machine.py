"""Whatever comes, in whatever order, twice or late: what must hold of the job memory, holds."""

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from callback.config import TrackerConfig
from callback.records import Cancel, Claim, ClaimJobs, Command, Finish, JobView, NewJob, Redeliver, Release, Submit
from callback.schema import deliveries, jobs
from callback.states import FINAL, JobState
from callback.store import Store
from callback.tracker import JobTracker
from tests.unit.callback.tracker_kit import Desk, FolderPictures, ManualClock, crash, failure, new_job, rejected

T = TypeVar("T")

REFUSED_ADDRESS = "http://192.0.2.1/callback"
"""The policy refuses it, so attempts settle at once as errors and are repeated; nothing is sent."""
IDS = ("a", "b", "c", "d", "e")
QUEUE_TIMEOUT_S = 500.0
MODELS = ("sd", "sd", "sd", "flux")

ids = st.sampled_from(IDS)
models = st.sampled_from(MODELS)
picks = st.integers(0, 10_000)
hows = st.sampled_from(("complete", "fail", "release", "blame"))


@dataclass
class Known:
    """What was seen of a job: its highest attempt, and its row from the moment when it was final."""

    attempt: int = 0
    delivery_attempts: int = 0
    end: dict[str, Any] | None = None


class TrackerMachine(RuleBasedStateMachine):
    """Random commands to one tracker after the other, on one store."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="darkroom-machine-")
        path = Path(self.folder.name)
        # Time passes by rule only: ticks are called for.
        self.config = TrackerConfig(
            store_url=f"sqlite:///{path}/jobs.db",
            tick_s=3600.0,
            max_open_jobs=7,
            queue_timeout_s=QUEUE_TIMEOUT_S,
            callback_horizon_s=100.0,
            retention_interval_s=3600.0,
        )
        self.clock = ManualClock()
        self.pictures = FolderPictures(path)
        self.submissions: list[NewJob] = []
        self.claim_commands: list[ClaimJobs] = []
        self.claims: list[Claim] = []
        self.cancels: list[Cancel] = []
        self.redeliveries: list[Redeliver] = []
        self.known: dict[str, Known] = {}
        self.former: list[Desk] = []
        self.reader: Store

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def do(self, *commands: Command) -> Any:
        answers = self.run(self.desk.do_all(*commands))
        return answers if len(commands) > 1 else answers[0]

    async def _start(self) -> Desk:
        tracker = JobTracker(self.config, self.pictures, clock=self.clock)
        await tracker.start()
        return Desk(tracker, self.config, self.clock, self.pictures)

    @initialize()
    def begin(self) -> None:
        self.desk = self.run(self._start())
        self.reader = Store(self.config.store_url)
        # Something is under way from the beginning, so that few steps are spent on what has nothing to do.
        self.do(*(Submit(self._submission(job_id, "sd", "x", job_id != "b", None)) for job_id in IDS))
        self.claim("sd", 3)

    def teardown(self) -> None:
        for desk in (*self.former, self.desk):
            self.run(crash(desk.tracker))
        self.reader.close()
        self.runner.close()
        self.folder.cleanup()

    # ---- commands ------------------------------------------------------------------------------------------------

    def _submission(self, job_id: str, model: str, body: str, callback: bool, key: str | None) -> NewJob:
        url = REFUSED_ADDRESS if callback else None
        job = new_job(job_id, model=model, fingerprint=f"{model} {body}", idempotency_key=key, callback_url=url)
        self.submissions.append(job)
        return job

    @rule(
        job_id=ids,
        model=models,
        body=st.sampled_from(("x", "y")),
        callback=st.booleans(),
        key=st.sampled_from((None, None, "k1", "k2")),
    )
    def submit(self, job_id: str, model: str, body: str, callback: bool, key: str | None) -> None:
        job = self._submission(job_id, model, body, callback, key)
        first, again = self.do(Submit(job), Submit(job))
        if isinstance(first, JobView):
            assert again.key == first.key
            assert first.fingerprint == job.fingerprint
        else:
            assert rejected(first) == rejected(again)
            assert rejected(first) in {"queue_full", "job_id_in_use", "idempotency_key_reused"}

    @precondition(lambda self: self.submissions)
    @rule(pick=picks)
    def submit_again(self, pick: int) -> None:
        job = self.submissions[pick % len(self.submissions)]
        made = self._row(job.key)
        answer = self.do(Submit(job))
        if made:
            assert answer.key == job.key

    @precondition(lambda self: self.claims)
    @rule(pick=picks, blamed=st.booleans())
    def an_attempt_is_lost_and_another_begins(self, pick: int, blamed: bool) -> None:
        held = [claim for claim in self.claims if self._holds(claim)]
        if held:
            claim = held[pick % len(held)]
            self.do(self._report(claim, "blame" if blamed else "release"))
            self.claims += self.run(self.desk.claim(3, model=claim.model))

    @precondition(lambda self: self.claims)
    @rule(pick=picks)
    def a_job_is_cancelled_and_its_attempt_is_lost(self, pick: int) -> None:
        held = [claim for claim in self.claims if self._holds(claim)]
        if held:
            claim = held[pick % len(held)]
            assert self.do(Cancel("anyone", claim.job_id, claim.key)).cancel_requested
            assert self.do(self._report(claim, "release")) is True

    @rule(model=models, limit=st.integers(0, 3))
    def claim(self, model: str, limit: int) -> None:
        command = self.desk.claim_command(limit, model=model)
        self.claim_commands.append(command)
        first, again = self.do(command, command)
        assert first == again
        assert len(first) <= limit
        assert {claim.model for claim in first} <= {model}
        known = {(claim.key, claim.attempt) for claim in self.claims}
        assert not known & {(claim.key, claim.attempt) for claim in first}, "an attempt was given to two"
        self.claims += first

    @precondition(lambda self: self.claim_commands)
    @rule(pick=picks)
    def claim_again(self, pick: int) -> None:
        command = self.claim_commands[pick % len(self.claim_commands)]
        held = {row["key"] for row in self._rows(sa.select(jobs).where(jobs.c.claim_id == command.claim_id))}
        answer = self.do(command)
        if held:
            assert {claim.key for claim in answer} == held
        known = {(claim.key, claim.attempt) for claim in self.claims}
        self.claims += [claim for claim in answer if (claim.key, claim.attempt) not in known]

    @precondition(lambda self: self.claims)
    @rule(pick=picks, started=st.booleans())
    def renew(self, pick: int, started: bool) -> None:
        claim = self._claim(pick)
        held = self._holds(claim)
        lost = self.run(self.desk.renew(claim, started=started))
        assert lost == (() if held else (claim.key,))

    @precondition(lambda self: self.claims)
    @rule(pick=picks, how=hows, twice=st.booleans())
    def report(self, pick: int, how: str, twice: bool) -> None:
        claim = self._claim(pick)
        if self._holds(claim):
            answers = self._tell(self._report(claim, how), twice)
            assert set(answers) == {True}
            assert not self._holds(claim)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, how=hows, twice=st.booleans())
    def report_late(self, pick: int, how: str, twice: bool) -> None:
        late = [claim for claim in self.claims if not self._holds(claim)]
        late = [claim for claim in late if self._row(claim.key)["finished_at"] is None] or late
        if late:
            claim = late[pick % len(late)]
            before = self._row(claim.key)
            answers = self._tell(self._report(claim, how), twice)
            assert len(set(answers)) == 1
            assert self._row(claim.key) == before, "a late report changed something"

    def _tell(self, report: Command, twice: bool) -> Any:
        return self.do(report, report) if twice else (self.do(report),)

    def _report(self, claim: Claim, how: str) -> Finish | Release:
        if how == "complete":
            return self.desk.completion(claim)
        if how == "fail":
            return failure(claim)
        return Release(claim.key, claim.attempt, how == "blame", "the replica ended")

    @rule(job_id=ids, really=st.integers(0, 2))
    def cancel(self, job_id: str, really: int) -> None:
        if really:
            return
        command = self.run(self.desk.cancellation(job_id))
        self.cancels.append(command)
        first, again = self.do(command, command)
        if isinstance(first, JobView):
            assert first == again
            assert first.cancel_requested or first.error_code == "cancelled"
        else:
            assert rejected(first) == rejected(again)
            assert rejected(first) in {"job_not_found", "not_cancellable"}

    @precondition(lambda self: self.cancels)
    @rule(pick=picks)
    def cancel_again(self, pick: int) -> None:
        command = self.cancels[pick % len(self.cancels)]
        others = self._rows(sa.select(jobs).where(jobs.c.key != command.key).order_by(jobs.c.seq))
        self.do(command)
        assert self._rows(sa.select(jobs).where(jobs.c.key != command.key).order_by(jobs.c.seq)) == others

    @rule(job_id=ids, request_id=st.sampled_from(("r1", "r2")))
    def redeliver(self, job_id: str, request_id: str) -> None:
        command = self.run(self.desk.redelivery(job_id, request_id=request_id))
        self.redeliveries.append(command)
        answer = self.do(command)
        if isinstance(answer, JobView):
            assert answer.state in FINAL
        else:
            assert rejected(answer) in {"job_not_found", "not_redeliverable"}

    @precondition(lambda self: self.redeliveries)
    @rule(pick=picks)
    def redeliver_again(self, pick: int) -> None:
        command = self.redeliveries[pick % len(self.redeliveries)]
        asked_for = sa.select(deliveries.c.key, deliveries.c.redelivery_id).where(deliveries.c.key != command.key)
        before = self._rows(asked_for.order_by(deliveries.c.key))
        self.do(command)
        assert self._rows(asked_for.order_by(deliveries.c.key)) == before

    @precondition(lambda self: self.claims)
    @rule(pick=picks, job_id=ids, model=models, how=hows)
    def all_at_once(self, pick: int, job_id: str, model: str, how: str) -> None:
        claim_command = self.desk.claim_command(2, model=model)
        self.claim_commands.append(claim_command)
        report = self._report(self._claim(pick), how)
        submit = Submit(self._submission(job_id, model, "x", True, None))
        more = (self.run(self.desk.cancellation(job_id)),) if pick % 3 == 0 else ()
        answers = self.do(submit, claim_command, report, Submit(submit.job), *more)
        self.claims += answers[1]

    # ---- time, deaths, successors --------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 5.0, 5.0, 16.0, 101.0)), very_much=st.integers(0, 9))
    def time_passes(self, seconds: float, very_much: int) -> None:
        seconds += QUEUE_TIMEOUT_S if not very_much else 0.0
        self.clock.advance(seconds)
        self.run(self.desk.tracker._lifecycle.expire())
        self.run(self.desk.tracker._courier._begin_due())

    @rule()
    def attempts_settle(self) -> None:
        self.run(self.desk.tracker._courier.drain())

    @rule()
    def the_tracker_dies(self) -> None:
        self.run(crash(self.desk.tracker))
        self.desk = self.run(self._start())

    @precondition(lambda self: not self.former)
    @rule()
    def a_successor_takes_over(self) -> None:
        self.former.append(self.desk)
        self.desk = self.run(self._start())

    @precondition(lambda self: self.former)
    @rule(job_id=ids, pick=picks)
    def the_former_tracker_is_asked(self, job_id: str, pick: int) -> None:
        before = self._rows(sa.select(jobs).order_by(jobs.c.seq))
        commands: list[Command] = [Submit(new_job(job_id)), self.run(self.desk.cancellation(job_id))]
        if self.claims:
            commands.append(failure(self._claim(pick)))
        answers = self.run(self.former[0].do_all(*commands))
        assert {rejected(answer) for answer in answers} <= {"deposed", "unavailable"}
        assert self._rows(sa.select(jobs).order_by(jobs.c.seq)) == before

    # ---- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def memory_is_what_the_store_holds(self) -> None:
        self.desk.memory_equals_store()

    @invariant()
    def rows_are_sound(self) -> None:
        delivered = {row["key"]: row for row in self._rows(sa.select(deliveries))}
        current = []
        for row in self._rows(sa.select(jobs)):
            known = self.known.setdefault(row["key"], Known())
            final = JobState(row["state"]) in FINAL
            assert row["attempt"] >= known.attempt, "attempts only increase"
            assert (row["finished_at"] is not None) == final
            assert (row["claim_id"] is not None) == (row["state"] == JobState.PROCESSING)
            assert not (row["state"] == JobState.QUEUED and row["cancel_requested"])
            assert (row["key"] in delivered) == (final and row["callback_url"] is not None)
            assert not (row["state"] == JobState.COMPLETED and row["cancel_requested"])
            if row["key"] in delivered:
                assert delivered[row["key"]]["attempts"] >= known.delivery_attempts
                known.delivery_attempts = delivered[row["key"]]["attempts"]
            end = {name: value for name, value in row.items() if name != "superseded_at"} if final else None
            assert known.end is None or known.end == end, "a final job never changes"
            known.attempt, known.end = row["attempt"], end
            if row["superseded_at"] is None:
                current.append((row["owner"], row["job_id"]))
        assert len(current) == len(set(current))
        assert sum(known.end is None for known in self.known.values()) <= self.config.max_open_jobs

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self.reader.reading() as tx:
            return [dict(row) for row in tx.execute(query).mappings()]

    def _row(self, key: str) -> dict[str, Any]:
        rows = self._rows(sa.select(jobs).where(jobs.c.key == key))
        return rows[0] if rows else {}

    def _claim(self, pick: int) -> Claim:
        """Return a claim that is held, one whose job has been claimed again since, or any."""
        held = {claim.key for claim in self.claims if self._holds(claim)}
        old = [claim for claim in self.claims if claim.key in held and not self._holds(claim)]
        new = [claim for claim in self.claims if self._holds(claim)]
        claims = (new, old, new, self.claims)[pick % 4] or self.claims
        return claims[pick // 4 % len(claims)]

    def _holds(self, claim: Claim) -> bool:
        row = self._row(claim.key)
        return bool(row) and (row["state"], row["attempt"]) == (JobState.PROCESSING, claim.attempt)


TrackerMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestTrackerMachine = pytest.mark.timeout(280)(TrackerMachine.TestCase)
