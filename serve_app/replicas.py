"""What Ray Serve says of the model replicas, asked now and then."""

import asyncio
from dataclasses import dataclass

from ray import serve

from observability.logs import get_logger

ASK_EVERY_S = 5.0
ASK_WHILE_STARTING_S = 1.0

_log = get_logger("replicas")


@dataclass(frozen=True, slots=True)
class ModelReplicas:
    """A model deployment as Serve sees it. `message` explains a status other than HEALTHY."""

    status: str
    running: int
    starting: int
    message: str


class ReplicaWatch:
    """The latest state of the model deployments. `models` maps deployment names to model names."""

    def __init__(self, models: dict[str, str]) -> None:
        self._models = models
        self.latest: dict[str, ModelReplicas] = {}

    async def watch(self) -> bool:
        """Bring `latest` up to date and pause. There is always more to come."""
        # The call blocks on the Serve controller.
        status = await asyncio.to_thread(serve.status)
        latest = self._read(status, serve.get_replica_context().app_name)
        for name, one in latest.items():
            if one.message and one.message != self._message_of(name):
                # It may hold stacks and paths: for the log, not for clients.
                _log.info("Serve on a model's replicas", extra={"model": name, "serve_message": one.message})
        self.latest = latest
        settled = latest and all(one.running for one in latest.values())
        await asyncio.sleep(ASK_EVERY_S if settled else ASK_WHILE_STARTING_S)
        return True

    def running(self, model: str) -> int:
        """Return how many replicas of the model run; one while none is known."""
        known = self.latest.get(model)
        return max(1, known.running) if known is not None else 1

    def _message_of(self, name: str) -> str:
        return self.latest[name].message if name in self.latest else ""

    def _read(self, status: serve.schema.ServeStatus, app_name: str) -> dict[str, ModelReplicas]:
        application = status.applications.get(app_name)
        deployments = application.deployments if application is not None else {}
        return {
            self._models[name]: ModelReplicas(
                status=str(one.status.value),
                running=sum(n for state, n in one.replica_states.items() if state == "RUNNING"),
                starting=sum(n for state, n in one.replica_states.items() if state == "STARTING"),
                message=one.message,
            )
            for name, one in deployments.items()
            if name in self._models
        }
