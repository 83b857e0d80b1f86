"""Health and self-description."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from callback.errors import TrackerError
from callback.records import TrackerHealth
from serve_app.service import Service


class ModelHealth(BaseModel):
    """A model's replicas and queue. `status` is Ray Serve's word for the deployment."""

    status: str
    running_replicas: int
    starting_replicas: int
    queued: int
    head_age_s: float


class Health(BaseModel):
    """`healthy`: all is well. `degraded`: jobs are accepted, but something named below is wrong. `unavailable`: no."""

    status: Literal["healthy", "degraded", "unavailable"]
    accepting: bool
    timestamp: str
    tracker: Literal["ok", "silent"]
    store: Literal["ok", "failing", "unknown"]
    models: dict[str, ModelHealth]
    services: dict[str, str]
    open_jobs: int
    callbacks_under_way: int
    problems: list[str]


class Root(BaseModel):
    """What this is and where its routes are."""

    name: Literal["Darkroom"] = "Darkroom"
    version: str
    models: dict[str, str]
    default_model: str
    callback_public_key: str | None
    """What the signatures of callbacks are checked with; null while the tracker does not answer."""
    endpoints: dict[str, str]


def router(service: Service) -> APIRouter:
    """Return the routes, working on `service`."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health", responses={503: {"description": "Jobs cannot be accepted now.", "model": Health}})
    async def health(response: Response) -> Health:
        """Tell whether jobs are accepted and rendered, and what is wrong if not."""
        found = await _health(service)
        if found.status == "unavailable":
            response.status_code = 503
        return found

    @routes.get("/")
    async def root() -> Root:
        """Describe the service."""
        return Root(
            version=version("darkroom"),
            models={name: model.description.family for name, model in service.models.items()},
            default_model=service.default_model,
            callback_public_key=await service.public_key(),
            endpoints=_ENDPOINTS,
        )

    return routes


_ENDPOINTS = {
    "submit": "POST /inference",
    "status": "GET /inference/status/{job_id}",
    "result": "GET /inference/result/{job_id}",
    "image": "GET /images/{job_id}.png",
    "cancel": "DELETE /inference/{job_id}",
    "redeliver": "POST /inference/{job_id}/redeliver",
    "jobs": "GET /jobs",
    "health": "GET /health",
    "documentation": "GET /docs",
}


async def _health(service: Service) -> Health:
    problems: list[str] = []
    tracker: TrackerHealth | None = None
    try:
        tracker = await service.client.health()
        problems += tracker.degraded
    except TrackerError as error:
        problems.append(str(error))
    models = {name: _model_health(service, name, tracker) for name in service.models}
    problems += [
        f"Model {name} has no running replica (Serve says {one.status}); its jobs wait. The log says why."
        for name, one in models.items()
        if one.running_replicas == 0
    ]
    problems += service.troubles
    full = tracker is not None and tracker.open_jobs >= service.settings.max_open_jobs
    if full:
        problems.append("As many jobs are open as this service takes; submits get 429 until some have ended.")
    if service.stopping:
        problems.append("This replica is being stopped.")
    # A full queue is no reason for a load balancer to cut the pollers off: it is told, and answered with 200.
    able = bool(tracker and tracker.accepting) and not service.stopping and service.settings.enable_inference
    store: Literal["ok", "failing", "unknown"] = "unknown"
    if tracker is not None:
        store = "ok" if tracker.accepting else "failing"
    return Health(
        status="unavailable" if not able else "degraded" if problems else "healthy",
        accepting=able and not full,
        timestamp=datetime.now(UTC).isoformat(),
        tracker="ok" if tracker is not None else "silent",
        store=store,
        models=models,
        services={
            "inference": _old_word(models, enabled=service.settings.enable_inference),
            "kontext_edit": "disabled",
        },
        open_jobs=tracker.open_jobs if tracker else 0,
        callbacks_under_way=tracker.pending_deliveries if tracker else 0,
        problems=problems,
    )


def _model_health(service: Service, name: str, tracker: TrackerHealth | None) -> ModelHealth:
    replicas = service.replicas.latest.get(name)
    return ModelHealth(
        status=replicas.status if replicas else "UNKNOWN",
        running_replicas=replicas.running if replicas else 0,
        starting_replicas=replicas.starting if replicas else 0,
        queued=tracker.queued.get(name, 0) if tracker else 0,
        head_age_s=tracker.head_age_s.get(name, 0.0) if tracker else 0.0,
    )


def _old_word(models: dict[str, ModelHealth], *, enabled: bool) -> str:
    """Return the old server's word for the state of inference."""
    if not enabled:
        return "disabled"
    return "loaded" if any(model.running_replicas for model in models.values()) else "preloading"
