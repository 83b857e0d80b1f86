import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from rendering_kit import render, submit

from deployments.artifacts import ArtifactStore
from deployments.engine import Engine
from deployments.errors import EngineUnhealthy
from deployments.models import ModelSettings, SimulatedOptions
from deployments.noop import constant_png

Start = Callable[[ModelSettings], Engine]


def simulated(**options: object) -> ModelSettings:
    return ModelSettings(
        engine="simulated",
        step_timeout_s=0.3,
        simulated=SimulatedOptions.model_validate({"step_seconds": 0.001, **options}),
    )


def test_the_same_request_gives_the_same_bytes_and_any_change_gives_others(start: Start) -> None:
    engine = start(simulated())
    base = render(engine).artifact.sha256
    assert render(engine, job_id="again", artifact_key="ab/again/2.png").artifact.sha256 == base
    changes: list[dict[str, object]] = [
        {"prompt": "a dog"},
        {"negative_prompt": "blur"},
        {"seed": 43},
        {"num_inference_steps": 4},
        {"guidance_scale": 6.0},
    ]
    assert len({base, *(render(engine, **change).artifact.sha256 for change in changes)}) == 6


def test_a_large_picture_is_varied_and_has_more_than_100_000_bytes(start: Start, store: ArtifactStore) -> None:
    artifact = render(start(simulated()), width=1024, height=1024).artifact
    assert artifact.size_bytes > 100_000
    pixels = np.asarray(Image.open(io.BytesIO(store.read(artifact))))
    assert pixels.shape == (1024, 1024, 3)
    assert pixels.std() > 5


@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 130), (2048, 64), (257, 511)])
def test_pictures_have_exactly_the_asked_size(start: Start, width: int, height: int) -> None:
    artifact = render(start(simulated()), width=width, height=height).artifact
    assert (artifact.width, artifact.height) == (width, height)


def test_steps_take_the_time_they_are_told_without_using_the_cpu(start: Start) -> None:
    engine = start(simulated(step_seconds=0.05))
    cpu = time.process_time()
    assert render(engine, num_inference_steps=10).seconds["denoising"] >= 0.5
    assert time.process_time() - cpu < 0.25


@pytest.mark.parametrize(("option", "code"), [("fail_on", "render_error"), ("out_of_memory_on", "out_of_memory")])
def test_marked_prompts_fail_and_others_go_on(start: Start, option: str, code: str) -> None:
    engine = start(simulated(**{option: "[bad]"}))
    assert submit(engine, prompt="a [bad] cat").failed().error_code == code
    render(engine)


def test_a_marked_prompt_hangs_until_the_watchdog_gives_the_engine_up(start: Start) -> None:
    engine = start(simulated(hang_on="[hang]"))
    assert isinstance(submit(engine, prompt="[hang]").end(), EngineUnhealthy)


def test_an_unknown_adapter_fails_its_job_alone(start: Start) -> None:
    engine = start(simulated())
    assert submit(engine, adapter="nobody").failed().error_code == "unknown_adapter"
    render(engine)


def test_the_noop_engine_publishes_one_constant_picture_of_100_kilobytes(start: Start, store: ArtifactStore) -> None:
    engine = start(ModelSettings(engine="noop"))
    first, second = (render(engine, prompt=prompt, width=1024, height=1024).artifact for prompt in ("a", "b"))
    assert first.sha256 == second.sha256
    assert 100_000 < first.size_bytes < 125_000
    assert store.read(first) == constant_png(1024, 1024)


def test_noop_pictures_have_the_asked_size(start: Start) -> None:
    artifact = render(start(ModelSettings(engine="noop")), width=65, height=130).artifact
    assert (artifact.width, artifact.height) == (65, 130)
