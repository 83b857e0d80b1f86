"""The Serve ingress deployment: HTTP in front, dispatching behind."""

import asyncio
import ipaddress
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from deployments.models import ModelSettings, fetch_configs, guessed, is_elsewhere
from observability.logs import configure, get_logger
from serve_app.api import create_api
from serve_app.api.inference import MAX_WAIT_S
from serve_app.service import Service
from serve_app.settings import Settings

MAX_ONGOING_REQUESTS = 2000
"""Long polls hold a place each while they wait; they cost a coroutine and no thread."""

HEALTH_CHECK_PERIOD_S = 2.0
"""A dead replica is noticed this much later; Serve's default of 10 would keep everybody waiting for so long."""

HUB_PATIENCE_S = 10.0
"""How long a start waits to learn what models on the hub are."""

_log = get_logger("ingress")


class Ingress:
    """Speaks the async protocol and brings accepted jobs to the model replicas."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: Settings, **handles: DeploymentHandle
    ) -> None:
        configure(settings.log_level)
        _refuse_local_data_on_a_cluster(settings)
        loopback = _bound_to_loopback()
        _refuse_to_serve_strangers(settings, loopback=loopback)
        await learn_of(settings.offered_models())
        by_model = {model.name: handles[f"model_{n}"] for n, model in enumerate(settings.models)}
        self._service = Service(settings, by_model, allow_loopback=loopback)
        await self._service.start()
        _log.info("ingress serves", extra={"models": list(by_model)})

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the HTTP application once the service runs (called by Serve)."""
        return create_api(self._service)

    def check_health(self) -> None:
        """Raise if this replica does not work any more; Serve asks now and then, and replaces it."""
        self._service.check_health()

    async def __del__(self) -> None:
        """Stop dispatching in good order; Serve calls this when it takes the replica away."""
        service = getattr(self, "_service", None)
        if service is not None:
            await service.stop(_shutdown_budget_s())


ingress = serve.deployment(
    name="Ingress",
    # It only waits; a CPU of its own would be one less for a model replica.
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    health_check_period_s=HEALTH_CHECK_PERIOD_S,
)(serve.ingress()(Ingress))
"""The deployment; bind it with `Ingress`'s arguments."""


async def learn_of(models: Iterable[ModelSettings]) -> None:
    """Learn what models on the hub are. What is not known within `HUB_PATIENCE_S` is guessed, and the log says so."""
    loop = asyncio.get_running_loop()
    # Threads of its own: a name that cannot be resolved may hold one for longer.
    pool = ThreadPoolExecutor(thread_name_prefix="hub")
    reading = [(model, loop.run_in_executor(pool, fetch_configs, model)) for model in models if is_elsewhere(model)]
    pool.shutdown(wait=False)
    if not reading:
        return
    await asyncio.wait([outcome for _, outcome in reading], timeout=HUB_PATIENCE_S)
    for model, outcome in reading:
        trouble = outcome.result() if outcome.done() else f"no answer within {HUB_PATIENCE_S:g} s"
        if trouble is not None:
            _log.warning(guessed(model, trouble))


def _shutdown_budget_s() -> float:
    """Return what is left for running jobs once Serve has let the requests end, long polls among them."""
    config = serve.get_replica_context()._deployment_config
    return max(0.0, float(config.graceful_shutdown_timeout_s) - MAX_WAIT_S)


def _bound_to_loopback() -> bool:
    """Tell whether Serve's HTTP proxies listen on loopback only."""
    host = _get_global_client().http_config.host
    return host is None or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Tell whether nobody from outside reaches this host. An empty one is every address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_local_data_on_a_cluster(settings: Settings) -> None:
    """A tracker that moves to another node would open an empty database there."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    local = [
        name
        for name, url in (
            ("store_url", settings.resolved_store_url()),
            ("artifacts_url", settings.resolved_artifacts_url()),
        )
        if url.startswith(("sqlite", "/"))
    ]
    if nodes > 1 and local:
        raise RuntimeError(
            f"This Ray cluster has {nodes} nodes, but {' and '.join(local)} lie on one machine's disk. "
            "Set store_url to postgresql://... and artifacts_url to s3://... (or a folder that all nodes share, as file://...)."
        )


def _refuse_to_serve_strangers(settings: Settings, *, loopback: bool) -> None:
    """Whoever reaches an open port would otherwise render on our devices, and see everybody's pictures."""
    if not loopback and settings.keys_file is None and not settings.allow_unauthenticated:
        raise RuntimeError(
            "The service would answer on an address that others can reach, without asking for API keys. Set keys_file "
            "(`python -m serve_app.access NAME` makes a key), bind http_options.host to 127.0.0.1, or, behind a proxy "
            "that authenticates, set allow_unauthenticated: true."
        )
