"""Serve configurations to measure: the shipped one, with other models, places and numbers of replicas."""

import copy
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deployments.models import ModelSettings

ROOT = Path(__file__).parent.parent
"""The folder of the sources; Ray's workers import from it."""
SHIPPED = ROOT / "serve_config.yaml"

_MODEL_OPTIONS = "TextToImage-embedded"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas a model has: `count` from the beginning, or from one to `count` by the autoscaler."""

    count: int = 1
    autoscaled: bool = False

    def options(self) -> Document:
        """Return it in the words of a Serve configuration."""
        if not self.autoscaled:
            return {"num_replicas": self.count}
        # The shipped delays would take longer than the measurement.
        scaling = {"min_replicas": 1, "max_replicas": self.count, "target_ongoing_requests": 1}
        return {
            "autoscaling_config": scaling | {"upscale_delay_s": 1, "metrics_interval_s": 1, "look_back_period_s": 2}
        }


@dataclass(frozen=True, slots=True)
class Darkroom:
    """One Darkroom application. Its models are those of the first `ModelSettings` on, with their replicas."""

    data_dir: Path
    models: tuple[tuple[ModelSettings, Replicas], ...]
    name: str = "darkroom"
    route_prefix: str = "/"
    settings: Document = field(default_factory=dict)

    def document(self, url: str) -> Document:
        """Return the application's part of a Serve configuration; all that is not said here is as shipped."""
        shipped = copy.deepcopy(_shipped()["applications"][0])
        by_name = {deployment["name"]: deployment for deployment in shipped["deployments"]}
        model_options = by_name.pop(_MODEL_OPTIONS)
        del model_options["autoscaling_config"]
        for model, replicas in self.models:
            name = f"TextToImage-{model.name}"
            by_name[name] = model_options | {"name": name} | replicas.options()
        args = shipped["args"] | {
            "models": [model.model_dump(mode="json", exclude_unset=True) for model, _ in self.models],
            "data_dir": str(self.data_dir),
            "service_url": url + self.route_prefix.rstrip("/"),
            "tracker_name": f"{self.name}-tracker",
        }
        return {
            **shipped,
            "name": self.name,
            "route_prefix": self.route_prefix,
            "args": args | self.settings,
            "deployments": list(by_name.values()),
        }


@dataclass(frozen=True, slots=True)
class Yardstick:
    """An app to compare with."""

    name: str
    import_path: str
    args: Document = field(default_factory=dict)

    @property
    def route_prefix(self) -> str:
        """Where it answers."""
        return f"/{self.name}"

    def document(self, url: str) -> Document:
        """Return the application's part of a Serve configuration."""
        del url
        placed = {"name": self.name, "route_prefix": self.route_prefix, "import_path": self.import_path}
        # As Darkroom is shipped: a line for each request would cost the same in all of them.
        return placed | {"args": self.args, "logging_config": {"enable_access_log": False}}


def serve_config(port: int, *applications: Darkroom | Yardstick) -> Document:
    """Return the Serve configuration of these applications on a port of loopback."""
    shipped = _shipped()
    url = f"http://127.0.0.1:{port}"
    return {
        "proxy_location": shipped["proxy_location"],
        "http_options": shipped["http_options"] | {"host": "127.0.0.1", "port": port},
        "applications": [application.document(url) for application in applications],
    }


def _shipped() -> Document:
    document: Document = yaml.safe_load(SHIPPED.read_text())
    return document


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
