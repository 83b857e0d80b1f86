"""Which replica gets the next job: the one that will be free first."""

import asyncio
import time
from collections import Counter
from itertools import count

from ray.exceptions import ActorDiedError, RayError
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

PLACED_FOR_S = 1.0
"""A job that was placed counts for so long if it is not sent: its caller has gone, or the replica was full."""
MOST_ASKED = 16
"""Replicas that a choice asks at once for the length of their queue, where it is not known."""
ASK_FOR_S = 0.25
"""A choice waits for answers so long. Who has not answered by then counts as if it had a job more than is known."""
ANSWER_WITHIN_S = 5.0
"""A later answer still counts for later choices; after so long the replica is asked anew."""
FAILED_FOR_S = 1.0
"""A replica whose answer was an error is not asked again for so long."""
MOST_ROUNDS = 8
"""How often a choice asks others when those that it has asked turned out to be busy, or did not answer."""


class FreeFirstRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Sends a job to the replica with the fewest jobs; of several, to the one that was chosen the longest ago.

    Serve's own router compares two replicas at random. With jobs of seconds that leaves devices idle while others have
    two waiting (figures: docs/performance.md). Queues are known from what was sent from here and from what the replicas
    told; those that told nothing for some seconds are asked, each by one call at a time. Serve itself would have each
    job ask all of them, and with many jobs and busy processors answers come too late for its limit: jobs then went to
    the one replica that had answered, and everybody else was asked again.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._here: Counter[ReplicaID] = Counter()
        self._placed: dict[str, tuple[ReplicaID, float]] = {}
        self._turns: dict[ReplicaID, int] = {}
        self._turn = count(1)
        self._asked: dict[ReplicaID, asyncio.Task[None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the best replica, and others that have room for when it has died or is full."""
        if pending_request is not None:
            # There is no better choice to wait for at once: if all are full, Serve shall pause before it asks again.
            pending_request.routing_context.should_backoff = True
        ranked = self._ranked(candidate_replicas)
        for _ in range(MOST_ROUNDS):
            if len(ranked) <= 1 or not (unknown := self._to_ask(ranked)):
                break
            await self._ask(unknown)
            ranked = self._ranked([one for one in candidate_replicas if one.replica_id in self.curr_replicas])
        if not ranked:
            return []
        best = ranked[0]
        if not self._is_known(best):
            # As good as we know it. The replica tells how it is when it takes or refuses the job.
            self.on_new_queue_len_info(best.replica_id, self._jobs(best.replica_id))
        self._place(best.replica_id, pending_request)
        return [[best], [one for one in ranked[1:] if self._is_known(one) and self._has_room(one)]]

    # ---- how busy replicas are --------------------------------------------------------------------------------------

    def _is_known(self, replica: RunningReplica) -> bool:
        return self.replica_queue_len_cache.get(replica.replica_id) is not None

    def _has_room(self, replica: RunningReplica) -> bool:
        return self._jobs(replica.replica_id) < int(replica.max_ongoing_requests)

    def _jobs(self, replica_id: ReplicaID) -> int:
        told = self.replica_queue_len_cache.get(replica_id)
        if told is None:
            return self._here[replica_id] + (replica_id in self._asked)
        return max(int(told), self._here[replica_id])

    def _ranked(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        placed = self._placed_now()

        def busyness(one: RunningReplica) -> tuple[int, bool, int]:
            replica_id = one.replica_id
            jobs = self._jobs(replica_id) + placed[replica_id]
            return jobs, not self._is_known(one), self._turns.get(replica_id, 0)

        return sorted(replicas, key=busyness)

    def _placed_now(self) -> Counter[ReplicaID]:
        oldest = time.monotonic() - PLACED_FOR_S
        self._placed = {request: place for request, place in self._placed.items() if place[1] > oldest}
        return Counter(replica_id for replica_id, _ in self._placed.values())

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _to_ask(self, ranked: list[RunningReplica]) -> list[RunningReplica]:
        """Return whom to ask before the first is taken: nobody if its queue is known, or being asked for already."""
        best = ranked[0]
        if self._is_known(best) or best.replica_id in self._asked:
            return []
        jobs = self._jobs(best.replica_id)
        alike = [one for one in ranked if not self._is_known(one) and self._jobs(one.replica_id) == jobs]
        return [one for one in alike if one.replica_id not in self._asked][:MOST_ASKED]

    async def _ask(self, replicas: list[RunningReplica]) -> None:
        """Return when all have answered, or after `ASK_FOR_S`."""
        for replica in replicas:
            self._asked[replica.replica_id] = asyncio.create_task(self._learn(replica))
        await asyncio.wait([self._asked[one.replica_id] for one in replicas], timeout=ASK_FOR_S)

    async def _learn(self, replica: RunningReplica) -> None:
        replica_id = replica.replica_id
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                self.on_new_queue_len_info(replica_id, await replica.get_queue_len(deadline_s=ANSWER_WITHIN_S))
        except ActorDiedError:
            self.on_replica_actor_died(replica_id)
        except (RayError, TimeoutError):
            self.on_replica_actor_unavailable(replica_id)
            await asyncio.sleep(FAILED_FOR_S)
        finally:
            del self._asked[replica_id]

    # ---- what is on its way -----------------------------------------------------------------------------------------

    def _place(self, replica_id: ReplicaID, pending_request: PendingRequest | None) -> None:
        # Others may be placed before this one is sent.
        self._turns[replica_id] = next(self._turn)
        if pending_request is not None:
            self._placed[pending_request.metadata.internal_request_id] = (replica_id, time.monotonic())
        if len(self._turns) > 2 * len(self.curr_replicas):
            self._turns = {one: turn for one, turn in self._turns.items() if one in self.curr_replicas}
            self._here = Counter({one: jobs for one, jobs in self._here.items() if one in self.curr_replicas})

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
