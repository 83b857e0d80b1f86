"""Which replica gets the next job: the one that will be free first."""

import time
from collections import Counter
from itertools import count

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

PLACED_FOR_S = 1.0
"""A job that was placed counts for so long if it is not sent: its caller has gone, or the replica was full."""
MOST_ASKED = 16
"""Replicas that are asked at once for the length of their queue, where it is not known."""


class FreeFirstRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Sends a job to the replica with the fewest jobs; of several, to the one that was chosen the longest ago.

    Serve's own router compares two replicas at random. With jobs of seconds that leaves devices idle while others have
    two waiting (figures: docs/performance.md). Queues are known from what was sent from here and from what the replicas
    told; those that told nothing for some seconds are asked.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._here: Counter[ReplicaID] = Counter()
        self._placed: dict[str, tuple[ReplicaID, float]] = {}
        self._turns: dict[ReplicaID, int] = {}
        self._turn = count(1)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the best replica, and all others for when that one is full or does not answer."""
        if not candidate_replicas:
            return []
        if pending_request is not None:
            # There is no better choice to wait for at once: if all are full, Serve shall pause before it asks again.
            pending_request.routing_context.should_backoff = True
        placed = self._placed_now()
        busyness = {one.replica_id: self._busyness(one.replica_id, placed) for one in candidate_replicas}
        ranked = sorted(candidate_replicas, key=lambda one: busyness[one.replica_id])
        first = ranked[:1]
        if self.replica_queue_len_cache.get(first[0].replica_id) is None:
            # Other ingress replicas may have sent it jobs. Serve asks all of this rank and takes the shortest queue.
            fewest = busyness[first[0].replica_id][0]
            first = [one for one in ranked if busyness[one.replica_id][0] == fewest][:MOST_ASKED]
        self._place(first[0].replica_id, pending_request)
        return [first, [one for one in ranked if one not in first]]

    def _busyness(self, replica_id: ReplicaID, placed: Counter[ReplicaID]) -> tuple[int, int]:
        told = self.replica_queue_len_cache.get(replica_id) or 0
        return max(told, self._here[replica_id]) + placed[replica_id], self._turns.get(replica_id, 0)

    def _placed_now(self) -> Counter[ReplicaID]:
        oldest = time.monotonic() - PLACED_FOR_S
        self._placed = {request: place for request, place in self._placed.items() if place[1] > oldest}
        return Counter(replica_id for replica_id, _ in self._placed.values())

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
