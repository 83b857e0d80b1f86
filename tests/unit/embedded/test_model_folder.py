"""The model folder as it is shipped: it loads anywhere, and gives pictures that validators take for pictures."""

import warnings
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from PIL import Image

from deployments.embedded import MODEL_FOLDER
from deployments.embedded.evaluate import acceptable


@cache
def pipeline() -> DiffusionPipeline:
    loaded = DiffusionPipeline.from_pretrained(MODEL_FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def render(prompt: str, width: int = 64, height: int = 64, seed: int = 0, steps: int = 2) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    image: Image.Image = pipeline()(
        prompt, width=width, height=height, num_inference_steps=steps, guidance_scale=7.0, generator=generator
    ).images[0]
    return image


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*") if path.is_file()) <= 24_000_000


def test_it_loads_as_float32_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logging.enable_propagation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = DiffusionPipeline.from_pretrained(MODEL_FOLDER)
    logging.disable_propagation()
    assert [record.message for record in caplog.records if record.name.startswith("diffusers")] == []
    assert {part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)} == {torch.float32}


def test_the_same_request_gives_the_same_pixels() -> None:
    assert render("a red circle").tobytes() == render("a red circle").tobytes()


def test_prompt_and_seed_change_the_picture() -> None:
    first = render("a red circle on a blue background")
    assert first.tobytes() != render("a green star on a white background").tobytes()
    assert first.tobytes() != render("a red circle on a blue background", seed=1).tobytes()


@pytest.mark.parametrize("size", [(64, 64), (208, 144), (64, 256)])
def test_sizes_need_not_be_square(size: tuple[int, int]) -> None:
    assert render("a pink heart", *size).size == size


def test_a_large_picture_is_within_the_validators_limits() -> None:
    assert acceptable(render("a yellow star on a blue background", 1024, 1024, steps=3))
