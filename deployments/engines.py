"""Which engine a model's settings ask for."""

from deployments.artifacts import ArtifactStore
from deployments.engine import Engine, Renderer
from deployments.models import ModelSettings, check_source
from deployments.noop import NoopRenderer
from deployments.simulated import SimulatedRenderer

# Publishing waits for the disk. A real device leaves it ample time; the noop engine would wait for nothing else.
_NOOP_TAIL_THREADS = 4


def create_engine(
    settings: ModelSettings, artifacts: ArtifactStore, *, device: str = "auto", replica_id: str = "local"
) -> Engine:
    """Return an engine of the kind that `settings` names, not yet started. `device`: auto, cpu, cuda, cuda:N or mps.

    Raises ModelUnusable if there is no model where `settings` says.
    """
    return Engine(
        _renderer(settings, device),
        artifacts,
        replica_id=replica_id,
        queue_size=settings.queue_size,
        tail_threads=_NOOP_TAIL_THREADS if settings.engine == "noop" else 1,
        step_timeout_s=settings.step_timeout_s,
        load_timeout_s=settings.load_timeout_s,
    )


def _renderer(settings: ModelSettings, device: str) -> Renderer:
    if settings.engine == "noop":
        return NoopRenderer()
    if settings.engine == "simulated":
        return SimulatedRenderer(settings)
    check_source(settings)
    from deployments.diffusers_renderer import DiffusersRenderer  # noqa: PLC0415  (brings torch)

    return DiffusersRenderer(settings, device)
