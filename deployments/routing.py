"""Which replica gets the next job: the one that will be free first."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from observability.logs import get_logger

PLACED_FOR_S = 1.0
"""A job that was placed counts for so long if it is not sent: its caller has gone, or the replica was full."""
MOST_ASKED = 16
"""Replicas that a choice asks at once for the length of their queue, where it is not known."""
ASK_FOR_S = 0.25
"""A choice waits for answers so long; who is silent for longer counts as if it had a job more than is known."""
ANSWER_WITHIN_S = 5.0
"""Who is silent for so long has failed: it gets a job when nobody else is left, until it answers."""
ASK_AGAIN_S = 1.0
"""When a replica that has failed is asked again."""

_log = get_logger("routing")


class _Question(NamedTuple):
    """A replica is being asked for the length of its queue. `since` is monotonic."""

    task: asyncio.Task[None]
    since: float


class FreeFirstRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Sends a call to the replica with the fewest calls; of several, to the one that was chosen the longest ago.

    A call is a job, or several of milliseconds.

    Serve's own router compares two replicas at random. With jobs of seconds that leaves devices idle while others have
    two waiting (figures: docs/performance.md). Queues are known from what was sent from here and from what the replicas
    told; those that told nothing for some seconds are asked, all choices together by one call each. Serve itself would
    have each job ask all of them, and with many jobs and busy processors answers come too late for its limit: jobs then
    went to the one replica that had answered, and everybody else was asked again.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._here: Counter[ReplicaID] = Counter()
        self._placed: dict[str, tuple[ReplicaID, float]] = {}
        self._turns: dict[ReplicaID, int] = {}
        self._turn = count(1)
        self._questions: dict[ReplicaID, _Question] = {}
        self._guessed: set[ReplicaID] = set()
        self._failed: set[ReplicaID] = set()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the best replica, and others that have room for when it has died or is full."""
        if pending_request is not None:
            # There is no better choice to wait for at once: if all are full, Serve shall pause before it asks again.
            pending_request.routing_context.should_backoff = True
        ranked = await self._informed_ranking(candidate_replicas)
        if not ranked:
            return []
        best = ranked[0]
        if not self._is_known(best.replica_id):
            # As good as we know it, so that Serve does not ask. It tells how it is when it takes or refuses the job.
            super().on_new_queue_len_info(best.replica_id, self._jobs(best.replica_id))
            self._guessed.add(best.replica_id)
        self._place(best.replica_id, pending_request)
        return [[best], [one for one in ranked[1:] if self._is_known(one.replica_id) and self._has_room(one)]]

    async def _informed_ranking(self, candidates: list[RunningReplica]) -> list[RunningReplica]:
        """Return those that live, best first, after waiting for what may change who that is; `ASK_FOR_S` at most."""
        deadline = time.monotonic() + ASK_FOR_S
        ranked = self._ranked(candidates)
        while len(ranked) > 1 and (wait_s := deadline - time.monotonic()) > 0:
            best = ranked[0].replica_id
            if self._is_known(best) or self._is_silent(best) or best in self._failed:
                break
            questions = self._ask(ranked)
            silent_at = self._questions[best].since + ASK_FOR_S
            await asyncio.wait(
                questions,
                timeout=max(0.0, min(wait_s, silent_at - time.monotonic())),
                return_when=asyncio.FIRST_COMPLETED,
            )
            ranked = self._ranked(one for one in candidates if one.replica_id in self.curr_replicas)
        return ranked

    # ---- how busy replicas are --------------------------------------------------------------------------------------

    def _is_known(self, replica_id: ReplicaID) -> bool:
        return replica_id not in self._guessed and self.replica_queue_len_cache.get(replica_id) is not None

    def _is_silent(self, replica_id: ReplicaID) -> bool:
        question = self._questions.get(replica_id)
        return question is not None and time.monotonic() >= question.since + ASK_FOR_S

    def _has_room(self, replica: RunningReplica) -> bool:
        return self._jobs(replica.replica_id) < int(replica.max_ongoing_requests)

    def _jobs(self, replica_id: ReplicaID) -> int:
        if not self._is_known(replica_id):
            return self._here[replica_id] + self._is_silent(replica_id)
        return max(int(self.replica_queue_len_cache.get(replica_id) or 0), self._here[replica_id])

    def _ranked(self, replicas: Iterable[RunningReplica]) -> list[RunningReplica]:
        placed = self._placed_now()

        def busyness(one: RunningReplica) -> tuple[bool, int, bool, int]:
            replica_id = one.replica_id
            jobs = self._jobs(replica_id) + placed[replica_id]
            return replica_id in self._failed, jobs, not self._is_known(replica_id), self._turns.get(replica_id, 0)

        return sorted(replicas, key=busyness)

    def _placed_now(self) -> Counter[ReplicaID]:
        oldest = time.monotonic() - PLACED_FOR_S
        self._placed = {request: place for request, place in self._placed.items() if place[1] > oldest}
        return Counter(replica_id for replica_id, _ in self._placed.values())

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, ranked: list[RunningReplica]) -> list[asyncio.Task[None]]:
        """Ask the first, and others that may be as good; return the questions, of which some were asked before."""
        jobs = self._jobs(ranked[0].replica_id)
        alike = [one for one in ranked if not self._is_known(one.replica_id) and self._jobs(one.replica_id) == jobs]
        for replica in alike[:MOST_ASKED]:
            if replica.replica_id not in self._questions:
                task = asyncio.create_task(self._learn(replica))
                self._questions[replica.replica_id] = _Question(task, time.monotonic())
        return [self._questions[one.replica_id].task for one in alike[:MOST_ASKED]]

    async def _learn(self, replica: RunningReplica) -> None:
        """Ask until it answers or is gone."""
        replica_id = replica.replica_id
        try:
            while replica_id in self.curr_replicas:
                try:
                    async with asyncio.timeout(ANSWER_WITHIN_S):
                        jobs = await replica.get_queue_len(deadline_s=ANSWER_WITHIN_S)
                except ActorDiedError:
                    self.on_replica_actor_died(replica_id)
                except Exception as error:  # noqa: BLE001 - whatever Ray raises, it is no answer
                    if isinstance(error, ActorUnavailableError):
                        self.on_replica_actor_unavailable(replica_id)
                    _log.warning("a replica does not tell its queue", extra={"cause": type(error).__name__})
                    self._failed.add(replica_id)
                    await asyncio.sleep(ASK_AGAIN_S)
                else:
                    self.on_new_queue_len_info(replica_id, jobs)
                    return
        finally:
            del self._questions[replica_id]

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Note what a replica told, as an answer or with the job that it took or refused."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._guessed.discard(replica_id)
        self._failed.discard(replica_id)

    # ---- what is on its way -----------------------------------------------------------------------------------------

    def _place(self, replica_id: ReplicaID, pending_request: PendingRequest | None) -> None:
        # Others may be placed before this one is sent.
        self._turns[replica_id] = next(self._turn)
        if pending_request is not None:
            self._placed[pending_request.metadata.internal_request_id] = (replica_id, time.monotonic())
        if len(self._turns) > 2 * len(self.curr_replicas):
            self._turns = {one: turn for one, turn in self._turns.items() if one in self.curr_replicas}
            self._here = Counter({one: jobs for one, jobs in self._here.items() if one in self.curr_replicas})
            self._guessed.intersection_update(self.curr_replicas)
            self._failed.intersection_update(self.curr_replicas)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a job that is sent from here."""
        super().on_send_request(replica_id)
        self._here[replica_id] += 1
        request = next((one for one, place in self._placed.items() if place[0] == replica_id), None)
        if request is not None:
            del self._placed[request]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count it no more."""
        super().on_request_completed(replica_id, internal_request_id)
        self._here[replica_id] = max(0, self._here[replica_id] - 1)
