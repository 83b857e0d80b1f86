"""Settings: precedence, the old server's names, and what is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.embedded import ADAPTER_FOLDER
from serve_app.settings import Settings


def test_the_environment_wins_over_args_and_args_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().job_timeout_s == 300
    assert Settings.model_validate({"job_timeout_s": 20}).job_timeout_s == 20
    monkeypatch.setenv("DARKROOM_JOB_TIMEOUT_S", "30")
    assert Settings.model_validate({"job_timeout_s": 20}).job_timeout_s == 30


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("SERVICE_URL", "https://pictures.example/", "service_url", "https://pictures.example"),
        ("OUTPUT_DIR", "/srv/pictures", "artifacts_url", "/srv/pictures"),
        ("INFERENCE_TIMEOUT", "60", "job_timeout_s", 60),
        ("CALLBACK_TIMEOUT", "7.5", "callback_timeout_s", 7.5),
        ("HF_MODEL_ID", "some/model", "model_source", "some/model"),
        ("MODEL_PATH", "/srv/model", "model_source", "/srv/model"),
        ("DEVICE", "cpu", "device", "cpu"),
        ("JOB_RECORD_TTL_SECONDS", "300", "retention_s", 300),
        ("INFERENCE_QUEUE_MAXSIZE", "7", "max_open_jobs", 7),
        ("INFERENCE_QUEUE_MAXSIZE", "0", "max_open_jobs", 10_000),
        ("ENABLE_INFERENCE", "TRUE", "enable_inference", True),
        ("ENABLE_INFERENCE", "yes", "enable_inference", False),
    ],
)
def test_the_old_servers_names_are_honoured(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(Settings(), field) == expected


def test_a_replaced_source_is_the_first_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODEL_ID", "some/model")
    (model,) = Settings().offered_models()
    assert model.source == "some/model"


def test_the_embedded_model_has_its_adapters_and_a_replaced_source_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = Settings().offered_models()
    assert model.adapters.folder == str(ADAPTER_FOLDER)
    (model,) = Settings(adapters_dir=tmp_path).offered_models()
    assert model.adapters.folder == str(tmp_path)
    monkeypatch.setenv("HF_MODEL_ID", "some/model")
    (model,) = Settings().offered_models()
    assert model.adapters.folder is None


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite://", "A store in memory would lose every accepted job"),
        ("sqlite:///:memory:", "A store in memory would lose every accepted job"),
        ("mysql://user:s3cret@db/darkroom", "Jobs cannot be kept in mysql"),
    ],
)
def test_a_store_that_cannot_keep_jobs_is_refused_in_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as refusal:
        Settings(store_url=url)

    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize("value", ["172.17.0.1/32, 10.0.0.0/8", '["172.17.0.1/32", "10.0.0.0/8"]'])
def test_networks_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DARKROOM_CALLBACK_ALLOWED_NETWORKS", value)
    assert Settings().callback_allowed_networks == ("172.17.0.1/32", "10.0.0.0/8")


def test_networks_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("somewhere", '["172.17.0.1/32"', "10.0.0.1/8"):
        monkeypatch.setenv("DARKROOM_CALLBACK_ALLOWED_NETWORKS", value)
        with pytest.raises(ValidationError):
            Settings()


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=Path("data"))
    assert settings.resolved_store_url() == f"sqlite:///{tmp_path}/data/jobs.db"
    assert settings.resolved_artifacts_url() == f"{tmp_path}/data/pictures"
    remote = Settings(artifacts_url="s3://bucket/x", store_url="postgresql://u:p@db/darkroom")
    assert remote.resolved_artifacts_url() == "s3://bucket/x"
    assert remote.resolved_store_url() == "postgresql://u:p@db/darkroom"


def test_signed_requests_need_to_know_the_signers() -> None:
    with pytest.raises(ValidationError, match="hotkey: set keys_file too"):
        Settings(hotkey="5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")


def test_only_an_object_store_signs_links() -> None:
    with pytest.raises(ValidationError, match="a folder signs no links"):
        Settings(image_link_s=60)
    assert Settings(image_link_s=60, artifacts_url="s3://bucket/x").image_link_s == 60


@pytest.mark.parametrize(
    "wrong",
    [
        {"no_such_setting": 1},
        {"device": "abacus"},
        {"job_timeout_s": 0},
        {"callback_allowed_networks": ["not-a-network"]},
        {"models": []},
        {"models": [{"name": "a", "engine": "noop"}, {"name": "a", "engine": "noop"}]},
    ],
)
def test_wrong_settings_are_refused_at_start(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(wrong)
