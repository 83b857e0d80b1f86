"""Which replica gets the next job: the one that will be free first."""

from collections import Counter
from itertools import count

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica


class FreeFirstRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Sends a job to the replica with the fewest jobs; of several, to the one that was chosen the longest ago.

    Serve's own router compares two replicas at random. With jobs of seconds that leaves devices idle while others have
    two waiting (figures: docs/performance.md). Queues are known from what was sent and from the replicas' answers, so
    comparing all of them costs no message.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._here: Counter[ReplicaID] = Counter()
        self._turns: dict[ReplicaID, int] = {}
        self._turn = count(1)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the best replica, and all others for when that one is full or does not answer."""
        del pending_request
        best = min(candidate_replicas, key=self._busyness, default=None)
        if best is None:
            return []
        # Before the job is sent: others may be placed meanwhile.
        self._turns[best.replica_id] = next(self._turn)
        self._forget_the_gone()
        return [[best], [replica for replica in candidate_replicas if replica is not best]]

    def _busyness(self, replica: RunningReplica) -> tuple[int, int]:
        told = self.replica_queue_len_cache.get(replica.replica_id) or 0
        # Other ingress replicas send as well; and what a replica told is forgotten after some seconds.
        return max(told, self._here[replica.replica_id]), self._turns.get(replica.replica_id, 0)

    def _forget_the_gone(self) -> None:
        if len(self._turns) > 2 * len(self.curr_replicas):
            self._turns = {one: turn for one, turn in self._turns.items() if one in self.curr_replicas}
            self._here = Counter({one: jobs for one, jobs in self._here.items() if one in self.curr_replicas})

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a job that is sent from here."""
        super().on_send_request(replica_id)
        self._here[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count it no more."""
        super().on_request_completed(replica_id, internal_request_id)
        self._here[replica_id] = max(0, self._here[replica_id] - 1)
