from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import DDPMPipeline
from rendering_kit import make_request, render
from tiny_pipelines import clip_tokenizer
from transformers import PreTrainedTokenizerFast

from deployments.engine import Engine
from deployments.errors import ModelUnusable
from deployments.models import ModelSettings
from deployments.pipelines.base import Family
from deployments.pipelines.flux import NEGATIVE_PROMPT_SCALE, Flux
from deployments.pipelines.prompts import TokenLimit, truncation_warning
from deployments.pipelines.registry import FAMILIES, GENERIC, family_of_class

Start = Callable[[ModelSettings], Engine]


def settings(folder: Path, family: str = "auto") -> ModelSettings:
    return ModelSettings.model_validate({"source": str(folder), "threads": 1, "family": family})


@pytest.mark.parametrize("model", ["sdxl", "flux", "schnell"])
def test_every_family_renders_the_asked_size_repeatably(start: Start, models: Path, model: str) -> None:
    engine = start(settings(models / model))
    finished = render(engine, width=65, height=130)
    assert (finished.artifact.width, finished.artifact.height) == (65, 130)
    assert render(engine, seed=1).artifact.sha256 != finished.artifact.sha256
    assert render(engine, width=65, height=130).artifact.sha256 == finished.artifact.sha256


@pytest.mark.parametrize("model", ["sd", "sdxl", "flux"])
def test_the_generic_family_drives_any_pipeline_to_the_same_picture(start: Start, models: Path, model: str) -> None:
    own = render(start(settings(models / model)), width=72, height=88)
    generic = render(start(settings(models / model, "generic")), width=72, height=88)
    sizes = [(finished.artifact.width, finished.artifact.height) for finished in (own, generic)]
    assert sizes == [(72, 88), (72, 88)]
    if model != "flux":
        assert own.artifact.sha256 == generic.artifact.sha256


def test_a_negative_prompt_of_flux_takes_a_second_pass_and_says_so(start: Start, models: Path) -> None:
    engine = start(settings(models / "flux"))
    plain, negative = render(engine), render(engine, negative_prompt="rain")
    assert plain.warnings == ()
    assert negative.artifact.sha256 != plain.artifact.sha256
    assert "doubles the time" in negative.warnings[0]


def flux_call(*, embeds: bool, **changes: object) -> tuple[dict[str, object], tuple[str, ...]]:
    pipeline = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(guidance_embeds=embeds)))
    call = Flux().call(pipeline, make_request(**changes))
    return call.arguments, call.warnings


def test_flux_takes_guidance_as_it_is_and_scales_a_negative_prompt_apart() -> None:
    arguments, _ = flux_call(embeds=True, negative_prompt="rain", guidance_scale=3.5)
    assert (arguments["guidance_scale"], arguments["true_cfg_scale"]) == (3.5, NEGATIVE_PROMPT_SCALE)
    assert arguments["max_sequence_length"] == 512


def test_flux_without_distilled_guidance_uses_the_scale_for_the_negative_prompt() -> None:
    arguments, _ = flux_call(embeds=False, negative_prompt="rain", guidance_scale=3.0)
    assert (arguments["true_cfg_scale"], arguments["max_sequence_length"]) == (3.0, 256)
    arguments, warnings = flux_call(embeds=False, negative_prompt="rain", guidance_scale=0.0)
    assert "true_cfg_scale" not in arguments
    assert "no effect" in warnings[0]


def test_a_pipeline_without_step_callback_is_refused() -> None:
    with pytest.raises(ModelUnusable, match="DDPMPipeline has no callback_on_step_end"):
        GENERIC.check(DDPMPipeline.__new__(DDPMPipeline))


def test_classes_belong_to_one_family_and_unknown_ones_to_the_generic() -> None:
    claimed = [name for family in FAMILIES.values() for name in family.pipeline_classes]
    assert len(claimed) == len(set(claimed))
    assert family_of_class("FluxPipeline").name == "flux"
    assert family_of_class("SomethingNewPipeline") is family_of_class(None) is GENERIC


class WithoutGuidance:
    def __call__(self, prompt: str) -> None: ...


class WithTrueGuidance:
    def __call__(self, prompt: str, negative_prompt: str, true_cfg_scale: float) -> None: ...


def test_the_generic_family_passes_only_what_the_pipeline_takes() -> None:
    request = make_request(negative_prompt="rain")
    call = Family().call(WithoutGuidance(), request)
    assert call.arguments == {"prompt": "a cat"}
    assert call.warnings == ("negative_prompt: this model has none; it had no effect.",)
    call = Family().call(WithTrueGuidance(), request)
    assert call.arguments == {"prompt": "a cat", "negative_prompt": "rain", "true_cfg_scale": 5.0}


class SlowTokenizer:
    """A tokenizer written in Python: it knows no offsets."""

    is_fast = False

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, **options: object) -> object:
        return self._tokenizer(text, **options)


@pytest.mark.parametrize("wrap", [lambda tokenizer: tokenizer, SlowTokenizer], ids=["fast", "slow"])
@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("dog dog dog", "dog"),
        ("Dog   dog\n\n dog DOG", "dog DOG"),
        ("dog dog", None),
        ("", None),
        ("dog dog   ", None),
        ("düg dog", "g"),
    ],
)
def test_the_warning_names_exactly_the_text_behind_the_limit(
    wrap: Callable[[object], object], text: str, dropped: str | None
) -> None:
    # Three letters a word, one token each, and two special tokens: eight tokens are two words.
    warning = truncation_warning("prompt", text, TokenLimit(wrap(clip_tokenizer()), 8))
    if dropped is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.endswith(f"dropped: {dropped!r}.")
        kept = int(warning.split("cut after ")[1].split()[0])
        assert text[kept:].strip() == dropped


def test_a_very_long_text_is_shown_shortened() -> None:
    warning = truncation_warning("prompt", "dog " * 1000, TokenLimit(clip_tokenizer(), 8))
    assert warning is not None
    assert len(warning) < 400


def test_without_a_limit_nothing_is_cut() -> None:
    assert truncation_warning("prompt", "dog " * 1000, None) is None
