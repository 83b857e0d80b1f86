"""The environment of the kit."""

import pytest
from pydantic import ValidationError

from stress.kit_settings import KitSettings, host_of, port_of

NAMES = (
    "ASYNC_MINER_URL",
    "ASYNC_CALLBACK_BASE_URL",
    "ASYNC_CALLBACK_BIND_HOST",
    "ASYNC_CALLBACK_SECRET",
    "ASYNC_USE_EXTERNAL_CALLBACK",
    "STRESS_TEST_CONCURRENT",
    "STRESS_TEST_SEQUENTIAL",
    "ENABLE_TRAINING",
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_an_environment_the_documented_defaults_hold() -> None:
    settings = KitSettings()
    assert settings.miner_url == "http://localhost:8091"
    assert settings.callback_base_url == "http://127.0.0.1:8092"
    assert settings.callback_bind_host is None
    assert settings.callback_secret == "test-secret"
    assert (settings.stress_concurrent, settings.stress_sequential) == (10, 5)
    assert settings.enable_training
    assert not settings.use_external_callback
    assert not settings.names_a_service
    assert not settings.names_a_receiver


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (
        "https://gpu.example/",
        "http://172.17.0.1:9000",
        "0.0.0.0",  # noqa: S104 - read, not bound
        "s3cret",
        "yes",
        "50",
        "7",
        "false",
    )
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    settings = KitSettings()
    assert settings.miner_url == "https://gpu.example"
    assert settings.callback_base_url == "http://172.17.0.1:9000"
    assert settings.callback_bind_host == "0.0.0.0"  # noqa: S104
    assert settings.callback_secret == "s3cret"
    assert settings.use_external_callback
    assert (settings.stress_concurrent, settings.stress_sequential) == (50, 7)
    assert not settings.enable_training
    assert settings.names_a_service
    assert settings.names_a_receiver


@pytest.mark.parametrize(
    ("value", "is_yes"),
    [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("no", False), ("on", False), ("perhaps", False)],
)
def test_a_receiver_elsewhere_is_named_by_1_true_or_yes(
    monkeypatch: pytest.MonkeyPatch, value: str, is_yes: bool
) -> None:
    monkeypatch.setenv("ASYNC_USE_EXTERNAL_CALLBACK", value)
    assert KitSettings().use_external_callback is is_yes


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_MINER_URL", "")
    settings = KitSettings()
    assert settings.miner_url == "http://localhost:8091"
    assert not settings.names_a_service


@pytest.mark.parametrize("url", ["localhost:8091", "ftp://host", "http://", "http://host:port", "http://host?x=1"])
def test_what_is_no_base_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ASYNC_MINER_URL", url)
    with pytest.raises(ValidationError):
        KitSettings()


@pytest.mark.parametrize(
    ("url", "port"),
    [("http://host:8092", 8092), ("http://host", 80), ("https://host", 443), ("https://[::1]:9", 9)],
)
def test_the_port_is_the_explicit_one_or_that_of_the_scheme(url: str, port: int) -> None:
    assert port_of(url) == port


def test_a_host_has_no_brackets() -> None:
    assert host_of("http://[::1]:8092") == "::1"


def test_a_receiver_by_itself_demands_a_secret_only_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KitSettings().demanded_secret is None
    monkeypatch.setenv("ASYNC_CALLBACK_SECRET", "s3cret")
    assert KitSettings().demanded_secret == "s3cret"
