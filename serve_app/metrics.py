"""What the ingress replicas measure, through Ray's metrics; docs/operations.md lists it."""

from ray.util.metrics import Histogram

_SECONDS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]


class RenderMetrics:
    """Seconds per stage of finished pictures of one model."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._stages = Histogram(
            "darkroom_stage_seconds", "Seconds per stage.", boundaries=_SECONDS, tag_keys=("model", "stage")
        )

    def rendered(self, seconds: dict[str, float]) -> None:
        """Record a finished picture's stages."""
        for stage, value in seconds.items():
            self._stages.observe(value, {"model": self._model, "stage": stage})
