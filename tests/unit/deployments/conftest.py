from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_pipelines
from steered_renderer import SteeredRenderer

from deployments.artifacts import ArtifactStore
from deployments.engine import Engine
from deployments.engines import create_engine
from deployments.models import AdapterSettings, ModelSettings


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def start(store: ArtifactStore) -> Iterator[Callable[..., Engine]]:
    """Start engines of given settings; they are closed after the test."""
    engines: list[Engine] = []

    def start_engine(settings: ModelSettings) -> Engine:
        engine = create_engine(settings, store, device="cpu")
        engines.append(engine)
        engine.start()
        return engine

    yield start_engine
    for engine in engines:
        engine.close()


@pytest.fixture
def renderer() -> Iterator[SteeredRenderer]:
    """What the engines of `steer` drive."""
    renderer = SteeredRenderer()
    yield renderer
    renderer.permit(1000)


@pytest.fixture
def steer(renderer: SteeredRenderer, store: ArtifactStore) -> Iterator[Callable[..., Engine]]:
    """Start engines with given options; after the test they must end by themselves."""
    engines: list[Engine] = []

    def start(**options: float) -> Engine:
        engine = Engine(renderer, store, **options)  # type: ignore[arg-type]
        engine.start()
        engines.append(engine)
        return engine

    yield start
    renderer.permit(1000)
    assert all(engine.close() for engine in engines)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny pipelines: `sd`, `sdxl`, `flux`, `schnell`."""
    root = tmp_path_factory.mktemp("models")
    tiny_pipelines.save_stable_diffusion(root / "sd")
    tiny_pipelines.save_sdxl(root / "sdxl")
    tiny_pipelines.save_flux(root / "flux")
    tiny_pipelines.save_flux(root / "schnell", guidance=False)
    return root


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters for the tiny Stable Diffusion: `style`, `other`, `words` (text encoder)."""
    root = tmp_path_factory.mktemp("adapters")
    tiny_pipelines.save_unet_adapter(root / "style.safetensors")
    tiny_pipelines.save_unet_adapter(root / "other.safetensors", seed=2)
    tiny_pipelines.save_text_encoder_adapter(root / "words.safetensors")
    return root


@pytest.fixture(scope="session")
def sd_store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("sd-artifacts")))


@pytest.fixture(scope="session")
def sd(models: Path, adapter_folder: Path, sd_store: ArtifactStore) -> Iterator[Engine]:
    """A running engine with the tiny Stable Diffusion, shared: no job may leave a trace in it."""
    settings = ModelSettings(
        source=str(models / "sd"), threads=1, adapters=AdapterSettings(folder=str(adapter_folder), max_resident=2)
    )
    engine = create_engine(settings, sd_store, device="cpu")
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def own(start: Callable[[ModelSettings], Engine], models: Path, adapter_folder: Path) -> Engine:
    """An engine of this test's own, which it may break."""
    adapters = AdapterSettings(folder=str(adapter_folder))
    return start(ModelSettings(source=str(models / "sd"), threads=1, adapters=adapters))
