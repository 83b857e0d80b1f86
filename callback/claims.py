"""Claims: who renders which job, and until when. Leases live in memory only; who holds a job is in its row as well."""

import asyncio
from collections.abc import Iterable

import sqlalchemy as sa

from callback import job_rows
from callback.board import Board, Entry
from callback.clock import Clock
from callback.committer import Run
from callback.config import TrackerConfig
from callback.records import Claim, ClaimJobs, JobView, Renew, artifact_key
from callback.states import JobState

CLAIMS_REMEMBERED = 4096
"""Claims that get the same jobs again when they are repeated. Of one that is forgotten the leases run out."""


class Claims:
    """Hands queued jobs out and keeps their leases. `run` commits a unit of work (see `Committer.run`)."""

    def __init__(self, config: TrackerConfig, run: Run, board: Board, clock: Clock) -> None:
        self._config = config
        self._run = run
        self._board = board
        self._clock = clock
        self._under_way: dict[str, asyncio.Task[tuple[Claim, ...]]] = {}
        self._claimed: dict[str, list[str]] = {}

    def recover(self, entries: Iterable[Entry]) -> None:
        """Start afresh with these open jobs: a claim that is repeated gets them again."""
        self._claimed.clear()
        for entry in entries:
            self._remember(entry)

    async def claim(self, command: ClaimJobs) -> tuple[Claim, ...]:
        """Hand out the first queued jobs of a model. The same `claim_id` gets the same jobs again."""
        under_way = self._under_way.get(command.claim_id)
        if under_way is None:
            under_way = asyncio.ensure_future(self._claim(command))
            self._under_way[command.claim_id] = under_way
            under_way.add_done_callback(lambda _: self._under_way.pop(command.claim_id))
        return await asyncio.shield(under_way)

    async def _claim(self, command: ClaimJobs) -> tuple[Claim, ...]:
        found = [self._board.get(key) for key in self._claimed.get(command.claim_id, ())]
        repeated = [one.view for one in found if one is not None and one.claim_id == command.claim_id]
        if repeated:
            return tuple(_claim_of(view) for view in repeated)
        taken = self._board.take_queued(command.model, command.limit)
        if not taken:
            return ()

        keys_by_attempt: dict[int, list[str]] = {}
        for view in taken:
            keys_by_attempt.setdefault(view.attempt, []).append(view.key)

        def work(tx: sa.Connection) -> set[str]:
            who = command.holder, command.claim_id
            won = (job_rows.claim(tx, keys, attempt, *who) for attempt, keys in keys_by_attempt.items())
            return set().union(*won)

        def show(won: set[str]) -> tuple[Claim, ...]:
            # What was not won has been cancelled meanwhile; its own command has told the readers.
            shown = (self._show_claim(view, command) for view in taken if view.key in won)
            return tuple(claim for claim in shown if claim is not None)

        try:
            claims: tuple[Claim, ...] = await self._run(work, show)
        except BaseException:
            for view in taken:
                self._board.requeue(view.key)
            raise
        return claims

    def _show_claim(self, view: JobView, command: ClaimJobs) -> Claim | None:
        entry = self._board.update(view.key, state=JobState.PROCESSING, attempt=view.attempt + 1)
        if entry is None:
            return None
        entry.holder, entry.claim_id, entry.heard = command.holder, command.claim_id, True
        entry.lease_until = self._clock.steady() + self._config.lease_s
        self._remember(entry)
        return _claim_of(entry.view)

    def _remember(self, entry: Entry) -> None:
        if entry.claim_id is None:
            return
        self._claimed.setdefault(entry.claim_id, []).append(entry.view.key)
        while len(self._claimed) > CLAIMS_REMEMBERED:
            del self._claimed[next(iter(self._claimed))]

    async def renew(self, command: Renew) -> tuple[str, ...]:
        """Extend leases and show progress; returns the keys that this holder has lost. Leases live in memory only."""
        lost = []
        until = self._clock.steady() + self._config.lease_s
        for progress in command.progress:
            entry = self._board.get(progress.key)
            if entry is None or entry.view.attempt != progress.attempt or entry.view.state is not JobState.PROCESSING:
                lost.append(progress.key)
                continue
            entry.lease_until, entry.heard = until, True
            shown = {
                "stage": progress.stage,
                "step": progress.step,
                "steps": progress.steps,
                "started_at": progress.started_at,
            }
            if any(getattr(entry.view, name) != value for name, value in shown.items()):
                self._board.update(progress.key, **shown)
        return tuple(lost)

    def extend_leases(self, by_s: float) -> None:
        """Give every lease more time, because nobody could be heard for `by_s` seconds."""
        for entry in self._board:
            entry.lease_until += by_s


def _claim_of(view: JobView) -> Claim:
    key = artifact_key(view.key, view.attempt)
    return Claim(view.key, view.job_id, view.attempt, view.model, view.request_json, key)
