"""What is learned of a model on a hub: one of the test's own, on loopback."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response

from deployments.models import ModelSettings
from serve_app import ingress
from stress.background_server import BackgroundServer

COMMIT = "0" * 40
MODEL = "somebody/schnell"
FILES = {
    "model_index.json": {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
    "transformer/config.json": {"guidance_embeds": False},
}
SCRIPT = """
import json, sys
from deployments.models import ModelSettings, describe, fetch_configs, guessed
settings = ModelSettings.model_validate_json(sys.argv[1])
trouble = fetch_configs(settings)
print(json.dumps({"trouble": trouble and guessed(settings, trouble)} | describe(settings).model_dump()))
"""


@dataclass
class Hub:
    """Serves `FILES` as the hub does, while it is `open`; counts what it is asked."""

    home: Path
    open: bool = True
    asked: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/")(lambda: "a hub")
        app.api_route(f"/{MODEL}/resolve/{{revision}}/{{file:path}}", methods=["GET", "HEAD"])(self._file)
        return app

    def _file(self, revision: str, file: str) -> Response:
        self.asked[file] += 1
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file}-{revision}"'}
        if not self.open:
            return Response(
                status_code=401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            )
        if file not in FILES:
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound", **headers})
        return Response(json.dumps(FILES[file]), headers=headers)

    def learn(self, **settings: Any) -> dict[str, Any]:
        """Return what a new process with this hub and its own cache learns of the model."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        theirs = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment = theirs | ours
        model = json.dumps({"source": MODEL} | settings)
        command = [sys.executable, "-c", SCRIPT, model]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=120, check=True)
        learned: dict[str, Any] = json.loads(done.stdout)
        return learned


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "cache")
    with BackgroundServer(hub.app(), probe_path="/") as server:
        hub.url = server.url
        yield hub


def test_a_model_on_the_hub_is_known_before_anybody_has_loaded_it(hub: Hub) -> None:
    learned = hub.learn()
    assert learned["trouble"] is None
    assert (learned["family"], learned["default_steps"], learned["default_guidance"]) == ("flux", 4, 0.0)
    assert set(hub.asked) == set(FILES)

    hub.asked.clear()
    assert hub.learn() == learned
    assert not hub.asked


def test_a_hub_that_refuses_is_told_and_settings_stand_in(hub: Hub) -> None:
    hub.open = False
    learned = hub.learn()
    assert "gated repo" in learned["trouble"]
    assert "is taken for generic: requests that name no steps or guidance get 28 and 5.0" in learned["trouble"]
    assert "Put the model on every node (with HF_TOKEN if it needs one), or set family" in learned["trouble"]
    assert learned["family"] == "generic"

    learned = hub.learn(family="flux", default_steps=4, default_guidance=0.0)
    assert "is taken for flux: requests that name no steps or guidance get 4 and 0.0" in learned["trouble"]
    assert (learned["family"], learned["default_steps"], learned["default_guidance"]) == ("flux", 4, 0.0)


def test_a_folder_that_is_missing_is_no_hub_id(hub: Hub) -> None:
    assert "no such folder on the ingress's node" in hub.learn(source="/srv/absent")["trouble"]
    assert not hub.asked


def test_an_absent_hub_is_told(hub: Hub) -> None:
    hub.url = "http://127.0.0.1:9"
    assert "refused" in hub.learn()["trouble"]


async def test_a_start_does_not_wait_for_a_hub_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(ingress, "HUB_PATIENCE_S", 0.2)
    monkeypatch.setattr(ingress, "fetch_configs", lambda _: answers.wait(60))
    models = [ModelSettings(name=name, source=MODEL) for name in ("one", "other")]
    try:
        async with asyncio.timeout(10):
            await ingress.learn_of([*models, ModelSettings(name="tests", engine="noop")])
    finally:
        answers.set()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["model one", "model other"]
    assert "no answer within 0.2 s" in caplog.text
