import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.errors import ModelUnusable
from deployments.models import ModelSettings, SimulatedOptions, check_source, describe


@pytest.mark.parametrize(
    ("folder", "family", "factor", "steps", "guidance", "tokens"),
    [
        ("sd", "stable_diffusion", 8, 28, 7.0, 77),
        ("sdxl", "sdxl", 8, 28, 5.0, 77),
        ("flux", "flux", 16, 28, 3.5, 512),
        ("schnell", "flux", 16, 4, 0.0, 512),
    ],
)
def test_a_folder_tells_family_defaults_and_size_factor(
    models: Path, folder: str, family: str, factor: int, steps: int, guidance: float, tokens: int
) -> None:
    described = describe(ModelSettings(source=str(models / folder)))
    assert (described.family, described.size_factor) == (family, factor)
    assert (described.default_steps, described.default_guidance) == (steps, guidance)
    assert described.max_prompt_tokens == tokens


def test_an_autoencoder_with_more_blocks_has_a_larger_factor(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8] * 5}))
    assert describe(ModelSettings(source=str(tmp_path))).size_factor == 16


def test_settings_win_over_the_family(models: Path) -> None:
    settings = ModelSettings(source=str(models / "sd"), family="generic", default_steps=4, default_guidance=0.0)
    described = describe(settings)
    assert (described.family, described.default_steps, described.default_guidance) == ("generic", 4, 0.0)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"_class_name": "UnheardOfPipeline"}'])
def test_a_model_that_cannot_be_known_beforehand_is_generic(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    assert describe(ModelSettings(source=str(tmp_path))).family == "generic"


def test_a_hub_id_that_is_not_cached_is_generic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert describe(ModelSettings(source="somebody/some-model-that-nobody-has")).family == "generic"


def test_a_folder_that_is_no_model_is_said_without_loading_anything(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"the folder has no model_index\.json"):
        check_source(ModelSettings(source=str(tmp_path)))
    with pytest.raises(ModelUnusable, match="there is no such folder"):
        check_source(ModelSettings(source=str(tmp_path / "absent")))
    for source in (str(models / "sd"), "somebody/some-model-that-nobody-has"):
        check_source(ModelSettings(source=source))


def test_a_missing_source_is_said() -> None:
    with pytest.raises(ValidationError, match="source is missing"):
        ModelSettings(name="broken")


def test_a_family_that_is_not_registered_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValidationError, match=r"there is no family 'flex'; name auto or one of .*flux"):
        ModelSettings(source="m", family="flex")


def test_engines_without_a_model_need_no_source() -> None:
    settings = ModelSettings(engine="simulated", simulated=SimulatedOptions(step_seconds=0.01))
    assert describe(settings).engine == "simulated"


@pytest.mark.parametrize("name", ["", "a b", "../x", ".x", "x" * 65])
def test_model_names_are_plain(name: str) -> None:
    with pytest.raises(ValidationError):
        ModelSettings(name=name, engine="noop")


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="sorce"):
        ModelSettings.model_validate({"engine": "noop", "sorce": "x"})
