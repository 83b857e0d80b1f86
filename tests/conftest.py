"""What all tests share: one Ray Serve instance a session, and applications deployed on it."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.apps import App, free_port

if TYPE_CHECKING:
    from tests.postgres_server import PostgresServer

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
# No test asks the hub of the world; test_hub.py has one of its own.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell lets what it starts in the background ignore Ctrl-C, and every child inherits that: then the tests that
# interrupt a process would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move each test marked `last` to the end of its module."""
    modules = [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]
    items[:] = [item for tests in modules for item in sorted(tests, key=_is_last)]


def _is_last(item: pytest.Item) -> bool:
    return item.get_closest_marker("last") is not None


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """A PostgreSQL server for the session. Without its binaries tests are skipped, but never in CI."""
    from tests.postgres_server import PostgresMissingError, running_server

    with ExitStack() as stack:
        try:
            server = stack.enter_context(running_server())
        except PostgresMissingError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI must check the store on PostgreSQL too. {error}")
            pytest.skip(str(error))
        yield server


@pytest.fixture(scope="session")
def serve_url() -> Iterator[str]:
    """A Ray Serve instance of the session's own, without applications."""
    import ray
    from ray import serve

    ray.init(address="local", include_dashboard=False, num_cpus=16, namespace="serve", log_to_driver=False)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        # Ends every process of the instance at once; `serve.shutdown` would drain one application after the other.
        ray.shutdown()


@pytest.fixture(scope="session")
def deploy_for_all(serve_url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., App]:
    """Deploy an application with its own store, pictures and tracker: `deploy_for_all(name, **settings)`.

    Again with the same name: redeploy.
    """
    from ray import serve

    from serve_app.app import build
    from serve_app.settings import Settings

    folders: dict[str, Path] = {}

    def deploy_app(name: str, **settings: Any) -> App:
        folder = folders.setdefault(name, tmp_path_factory.mktemp(name))
        url = f"{serve_url}/{name}"
        settled = Settings(**{"data_dir": folder, "service_url": url, "tracker_name": f"tracker-{name}", **settings})
        serve.run(build(settled), name=name, route_prefix=f"/{name}")
        return App(name, url, settled)

    return deploy_app


@pytest.fixture(scope="module")
def deploy(deploy_for_all: Callable[..., App]) -> Iterator[Callable[..., App]]:
    """Deploy like `deploy_for_all`; the applications are taken away after the module: even idle ones use the cores."""
    from ray import serve

    names: set[str] = set()

    def deploy_app(name: str, **settings: Any) -> App:
        names.add(name)
        return deploy_for_all(name, **settings)

    yield deploy_app
    for name in names:
        serve.delete(name, _blocking=False)


@pytest.fixture(scope="session")
def app(deploy_for_all: Callable[..., App], tmp_path_factory: pytest.TempPathFactory) -> App:
    """The application that most tests share: a fast simulated model, and the embedded one."""
    from deployments.embedded import MODEL_FOLDER
    from deployments.models import ModelSettings, SimulatedOptions
    from tests.e2e.adapters import save_adapters

    adapters = tmp_path_factory.mktemp("adapters")
    save_adapters(adapters)
    simulated = SimulatedOptions(
        step_seconds=0.02, fail_on="[fail]", out_of_memory_on="[oom]", hang_on="[hang]", crash_on="[crash]"
    )
    return deploy_for_all(
        "shared",
        models=[
            ModelSettings(name="simulated", engine="simulated", simulated=simulated),
            ModelSettings(name="embedded", source=str(MODEL_FOLDER)),
        ],
        adapters_dir=adapters,
        callback_timeout_s=3.0,
    )


@pytest.fixture(scope="session")
def embedded_app(deploy_for_all: Callable[..., App]) -> App:
    """The application as it is without any setting: the embedded model with the adapters that ship with it."""
    return deploy_for_all("embedded")
