"""What the service refuses to start with."""

from pathlib import Path

import pytest
import ray

from serve_app.app import build
from serve_app.ingress import _refuse_local_data_on_a_cluster, _refuse_to_serve_strangers, is_loopback
from serve_app.settings import Settings


def nodes(count: int) -> list[dict[str, bool]]:
    return [{"Alive": True}] * count + [{"Alive": False}]


def test_local_data_is_refused_on_more_than_one_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local = Settings(data_dir=tmp_path)
    monkeypatch.setattr(ray, "nodes", lambda: nodes(1))
    _refuse_local_data_on_a_cluster(local)
    monkeypatch.setattr(ray, "nodes", lambda: nodes(2))
    with pytest.raises(RuntimeError, match="2 nodes, but store_url and artifacts_url"):
        _refuse_local_data_on_a_cluster(local)
    with pytest.raises(RuntimeError, match="but artifacts_url lie"):
        _refuse_local_data_on_a_cluster(Settings(data_dir=tmp_path, store_url="postgresql://db/darkroom"))
    shared = {"store_url": "postgresql://db/darkroom", "artifacts_url": "s3://bucket/pictures"}
    _refuse_local_data_on_a_cluster(Settings(**shared))


def test_a_password_in_args_is_refused_and_one_in_the_environment_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://user:secret@db/darkroom"
    with pytest.raises(ValueError, match="DARKROOM_STORE_URL") as refused:
        build(Settings(store_url=url))
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("DARKROOM_STORE_URL", url)
    build(Settings())


def test_an_open_address_without_keys_is_refused_unless_it_is_wished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="keys_file"):
        _refuse_to_serve_strangers(Settings(), loopback=False)
    _refuse_to_serve_strangers(Settings(), loopback=True)
    _refuse_to_serve_strangers(Settings(keys_file=tmp_path / "keys.toml"), loopback=False)
    _refuse_to_serve_strangers(Settings(allow_unauthenticated=True), loopback=False)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("", False), ("0.0.0.0", False), ("gpu-1.lan", False)],  # noqa: S104 - named, not bound
)
def test_an_address_is_loopback_only_if_nobody_else_reaches_it(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
