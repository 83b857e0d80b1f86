"""Health tells the truth, and the root describes the service."""

from importlib.metadata import version

import httpx
import pytest


def test_health_names_tracker_store_and_replicas(http: httpx.Client) -> None:
    answer = http.get("/health")
    health = answer.json()
    assert answer.status_code == 200
    assert (health["accepting"], health["tracker"], health["store"]) == (True, "ok", "ok")
    assert set(health["models"]) == {"simulated", "embedded"}
    assert health["services"]["inference"] in {"loaded", "preloading"}


def test_the_root_says_that_it_is_darkroom_of_this_version(http: httpx.Client) -> None:
    root = http.get("/").json()
    assert (root["name"], root["version"]) == ("Darkroom", version("darkroom"))
    assert root["default_model"] == "simulated"
    for endpoint in root["endpoints"].values():
        assert endpoint.split(" ")[0] in {"GET", "POST", "DELETE"}


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_interface_is_documented(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200
