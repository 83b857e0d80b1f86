"""The configurations that are measured are the shipped one, except for what they say."""

from pathlib import Path

import yaml

from bench.config import SHIPPED, Darkroom, Replicas, Yardstick, serve_config
from deployments.models import ModelSettings
from serve_app.settings import Settings

NOOP = ModelSettings(name="noop", engine="noop")


def test_all_that_is_not_said_is_as_shipped(tmp_path: Path) -> None:
    shipped = yaml.safe_load(SHIPPED.read_text())
    config = serve_config(1234, Darkroom(tmp_path, ((NOOP, Replicas()),)), Yardstick("constant", "somewhere:app"))
    darkroom, constant = config["applications"]

    assert config["http_options"] == shipped["http_options"] | {"host": "127.0.0.1", "port": 1234}
    for name, value in shipped["applications"][0]["args"].items():
        assert darkroom["args"][name] == ("http://127.0.0.1:1234" if name == "service_url" else value)
    ingress, model = darkroom["deployments"]
    assert ingress == shipped["applications"][0]["deployments"][0]
    assert model["name"] == "TextToImage-noop"
    assert model["max_ongoing_requests"] == shipped["applications"][0]["deployments"][1]["max_ongoing_requests"]
    assert model["num_replicas"] == 1
    assert constant["route_prefix"] == "/constant"


def test_the_arguments_are_valid_settings(tmp_path: Path) -> None:
    app = Darkroom(tmp_path, ((NOOP, Replicas(4, autoscaled=True)),), name="other", route_prefix="/other")
    (document,) = serve_config(1234, app)["applications"]

    settings = Settings(**document["args"])
    assert settings.models == [NOOP]
    assert settings.service_url == "http://127.0.0.1:1234/other"
    assert document["deployments"][1]["autoscaling_config"]["max_replicas"] == 4
