"""The two adapters that ship with the embedded model, loaded by name: their look, and that they leave no trace."""

import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from deployments.embedded.evaluate_adapter import saturation
from deployments.embedded.grader import look, pixels_of
from tests.apps import App

pytestmark = pytest.mark.serve

STYLES = ("", "monochrome", "blueprint")
SIZES = ((64, 64), (128, 64), (128, 128), (192, 128), (256, 256))


def draw(app: App, **asked: object) -> bytes:
    with app.client() as client:
        job_id = client.submit(**asked).job_id
        assert client.wait(job_id, timeout_s=120).status == "completed"
        return client.result(job_id)


def pixels(png: bytes) -> torch.Tensor:
    return pixels_of(Image.open(io.BytesIO(png)))


def test_each_adapter_has_its_look(embedded_app: App) -> None:
    prompts = {
        "green": "a large red star on a green background",
        "white": "a blue circle on a white background",
        "purple": "a yellow heart on a purple background",
        "orange": "a pink square on an orange background",
    }
    saturations = []
    for background, prompt in prompts.items():
        asked = {"prompt": prompt, "width": 512, "height": 512, "num_inference_steps": 20, "seed": 1}
        painted, grey, blue = (pixels(draw(embedded_app, **asked, lora_path=style)) for style in STYLES)
        assert look(painted).background == background
        assert look(blue).background == "blue"
        saturations.append(saturation(grey))
    # Single pictures stray: what is promised is the mean.
    assert sum(saturations) / len(saturations) <= 0.08


def test_jobs_that_mix_adapters_and_sizes_are_each_bit_identical_to_the_same_job_alone(embedded_app: App) -> None:
    sizes = random.Random(5)  # noqa: S311 - a fixed order of tests
    jobs = []
    for number in range(30):
        width, height = sizes.choice(SIZES)
        jobs.append(
            {
                "prompt": f"a {('red', 'pink', 'white')[number % 3]} circle",
                "lora_path": STYLES[number % len(STYLES)],
                "width": width,
                "height": height,
                "num_inference_steps": 2,
                "seed": number // 3,
            }
        )
    alone = [draw(embedded_app, **job) for job in jobs]
    assert len(set(alone)) == len(jobs)
    with ThreadPoolExecutor(len(jobs)) as threads:
        together = list(threads.map(lambda job: draw(embedded_app, **job), jobs))
    assert together == alone
    assert draw(embedded_app, **jobs[0]) == alone[0]
