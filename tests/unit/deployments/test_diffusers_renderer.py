"""The real engine on the CPU, with pipelines of the real classes and random weights."""

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from rendering_kit import Job, make_request, render, renderer_of, submit
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_stable_diffusion

from deployments.artifacts import ArtifactStore
from deployments.device_picture import start_copy
from deployments.engine import Engine
from deployments.errors import ModelUnusable, RenderBroken
from deployments.models import ModelSettings
from deployments.render import RenderProgress, RenderRequest
from deployments.torch_device import lay_out

LONG_PROMPT = "a cat " * 60 + "and at last a dog"


def pixels(store: ArtifactStore, job: Job) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(store.read(job.finished().artifact))))


def bare_picture(
    folder: Path,
    request: RenderRequest,
    width: int,
    height: int,
    memory_format: torch.memory_format = torch.channels_last,
) -> Image.Image:
    """What diffusers alone makes of a request, with convolutions as the engine lays them out on the CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    lay_out(pipeline.components.values(), memory_format)
    torch.set_num_threads(1)  # those of the engine: they are part of the result
    picture = pipeline(
        request.prompt,
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        negative_prompt=request.negative_prompt,
        generator=torch.Generator("cpu").manual_seed(request.seed),
    ).images[0]
    assert isinstance(picture, Image.Image)
    return picture


def test_the_picture_is_the_one_that_diffusers_makes(sd: Engine, sd_store: ArtifactStore, models: Path) -> None:
    seen = pixels(sd_store, submit(sd, negative_prompt="a dog"))
    expected = bare_picture(models / "sd", make_request(negative_prompt="a dog"), 64, 64)
    assert np.array_equal(seen, np.asarray(expected))


@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_the_memory_format_of_the_settings_is_the_one_that_renders(
    start: Callable[[ModelSettings], Engine],
    store: ArtifactStore,
    models: Path,
    name: Literal["contiguous", "channels_last"],
) -> None:
    engine = start(ModelSettings(source=str(models / "sd"), threads=1, memory_format=name))
    memory_format = torch.channels_last if name == "channels_last" else torch.contiguous_format
    weight = renderer_of(engine)._pipeline.vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=memory_format)
    expected = bare_picture(models / "sd", make_request(), 64, 64, memory_format)
    assert np.array_equal(pixels(store, submit(engine)), np.asarray(expected))


def test_only_two_dimensional_convolutions_are_laid_out() -> None:
    model = torch.nn.ModuleList(
        [torch.nn.Conv2d(2, 3, 3), torch.nn.Conv3d(2, 3, 3), torch.nn.Conv1d(2, 3, 3), torch.nn.Linear(2, 3)]
    )
    model.table = torch.nn.Parameter(torch.ones(2, 3, 4, 5))
    lay_out([None, "no module", model], torch.channels_last)
    flat, *others = [*(layer.weight for layer in model.children()), model.table]
    assert isinstance(flat, torch.Tensor)
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert all(isinstance(weight, torch.Tensor) and weight.is_contiguous() for weight in others)


def test_the_same_request_gives_the_same_bytes_whatever_runs_between(sd: Engine) -> None:
    requests: list[dict[str, object]] = [
        {},
        {"seed": 7},
        {"prompt": "a dog", "num_inference_steps": 5},
        {"width": 65, "height": 130},
        {"adapter": "style"},
        {"adapter": "other"},
        {"adapter": "words"},
        {"negative_prompt": "rain", "adapter": "style"},
    ]
    alone = [render(sd, **request).artifact.sha256 for request in requests]
    assert len(set(alone)) == len(requests)
    order = [index for index in range(len(requests)) for _ in range(3)]
    random.shuffle(order)
    # Waves of eight: what the engine takes at a time.
    for wave in (order[:8], order[8:16], order[16:]):
        jobs = [(n, submit(sd, artifact_key=f"ab/w/{i}.png", **requests[n])) for i, n in enumerate(wave)]
        for n, job in jobs:
            assert job.finished().artifact.sha256 == alone[n]


def test_a_fresh_engine_gives_the_bytes_of_one_that_has_held_adapters(
    sd: Engine, start: Callable[[ModelSettings], Engine], models: Path
) -> None:
    render(sd, adapter="style")
    fresh = start(ModelSettings(source=str(models / "sd"), threads=1))
    assert render(sd).artifact.sha256 == render(fresh).artifact.sha256


def test_a_job_stopped_half_way_leaves_no_trace_in_the_next(sd: Engine) -> None:
    before = render(sd, adapter="style").artifact.sha256, render(sd).artifact.sha256
    stopped = submit(sd, num_inference_steps=100, adapter="other")
    stopped.until(lambda event: isinstance(event, RenderProgress) and event.step == 3)
    assert stopped.handle is not None
    stopped.handle.cancel()
    assert stopped.failed().error_code == "cancelled"
    assert max(stopped.steps()) < 100
    assert (render(sd, adapter="style").artifact.sha256, render(sd).artifact.sha256) == before


def test_a_job_beyond_its_limit_stops_at_a_step(sd: Engine) -> None:
    job = submit(sd, num_inference_steps=100, timeout_s=0.02)
    assert job.failed().error_code == "timeout"
    assert not any(isinstance(event, RenderProgress) and event.stage == "storing" for event in job.seen)


def test_stages_and_steps_are_reported_in_order_with_their_seconds(sd: Engine) -> None:
    job = submit(sd, adapter="style")
    finished = job.finished()
    stages = list(dict.fromkeys(event.stage for event in job.seen if isinstance(event, RenderProgress)))
    assert stages == ["loading", "encoding", "denoising", "decoding", "storing"]
    assert job.steps() == [0, 1, 2, 3]
    assert list(finished.seconds) == stages
    assert all(seconds >= 0 for seconds in finished.seconds.values())


@pytest.mark.parametrize(("width", "height"), [(65, 130), (64, 65), (127, 64), (72, 72)])
def test_other_sizes_are_the_middle_of_the_next_larger_picture(
    sd: Engine, sd_store: ArtifactStore, models: Path, width: int, height: int
) -> None:
    seen = pixels(sd_store, submit(sd, width=width, height=height))
    larger = np.asarray(bare_picture(models / "sd", make_request(), -(-width // 8) * 8, -(-height // 8) * 8))
    top, left = (larger.shape[0] - height) // 2, (larger.shape[1] - width) // 2
    assert np.array_equal(seen, larger[top : top + height, left : left + width])


def test_an_autoencoder_that_would_shrink_the_picture_gets_its_real_factor(
    start: Callable[[ModelSettings], Engine], tmp_path: Path
) -> None:
    # 72 is a multiple of 8, which the pipeline checks, and none of 16: alone it would return 64 pixels.
    save_stable_diffusion(tmp_path / "sd16", vae_blocks=5)
    assert bare_picture(tmp_path / "sd16", make_request(), 72, 72).size == (64, 64)
    artifact = render(start(ModelSettings(source=str(tmp_path / "sd16"), threads=1)), width=72, height=72).artifact
    assert (artifact.width, artifact.height) == (72, 72)


def test_a_negative_prompt_changes_the_picture_or_warns_that_it_cannot(sd: Engine) -> None:
    with_guidance = render(sd, negative_prompt="rain")
    assert with_guidance.artifact.sha256 != render(sd).artifact.sha256
    assert with_guidance.warnings == ()
    without = render(sd, negative_prompt="rain", guidance_scale=1.0)
    assert without.artifact.sha256 == render(sd, guidance_scale=1.0).artifact.sha256
    assert without.warnings == ("negative_prompt: it had no effect, because guidance_scale is not above 1.",)


def test_a_prompt_that_is_cut_is_rendered_with_a_warning_that_names_what_is_lost(sd: Engine) -> None:
    finished = render(sd, prompt=LONG_PROMPT)
    (warning,) = finished.warnings
    kept = int(warning.split("cut after ")[1].split()[0])
    assert warning.startswith("prompt: ")
    assert "at most 77 tokens" in warning
    assert f"dropped: {LONG_PROMPT[kept:].strip()[:30]!r}"[:-1] in warning
    assert render(sd, prompt=LONG_PROMPT[:kept]).warnings == ()
    assert render(sd, prompt=LONG_PROMPT[:kept]).artifact.sha256 == finished.artifact.sha256


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_allowed_seed_renders(sd: Engine, seed: int) -> None:
    assert render(sd, seed=seed).seed == seed


def test_numbers_that_are_not_finite_are_no_picture(own: Engine) -> None:
    with torch.no_grad():
        renderer_of(own)._pipeline.vae.decoder.conv_out.bias.fill_(torch.nan)
    failed = submit(own).failed()
    assert failed.error_code == "render_error"
    assert "not finite" in failed.error


def test_a_picture_smaller_than_asked_is_refused() -> None:
    with pytest.raises(RenderBroken, match="60x64 pixels instead of 64x64"):
        start_copy(torch.zeros(3, 64, 60), 64, 64, 1)


def test_rounding_is_that_of_diffusers() -> None:
    values = torch.linspace(0, 1, 64 * 64 * 3).reshape(3, 64, 64).to(torch.bfloat16)
    picture = start_copy(values, 64, 64, 1)
    expected = (values.permute(1, 2, 0).float().numpy() * 255).round().astype("uint8")
    assert np.array_equal(picture.pixels.numpy(), expected)


def test_a_folder_of_mixed_types_loads_in_one(
    start: Callable[[ModelSettings], Engine], models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(models / "sd", folder)
    for component in ("unet", "vae"):
        file = folder / component / "diffusion_pytorch_model.safetensors"
        save_file({key: t.half() if t.is_floating_point() else t for key, t in load_file(file).items()}, file)
    engine = start(ModelSettings(source=str(folder), threads=1))
    modules = [part for part in renderer_of(engine)._pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}
    render(engine)


@pytest.mark.parametrize("damage", ["empty folder", "no such folder", "weights missing", "pickled weights"])
def test_a_model_that_cannot_be_loaded_is_said(
    start: Callable[[ModelSettings], Engine], models: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    if damage == "empty folder":
        folder.mkdir()
    elif damage != "no such folder":
        shutil.copytree(models / "sd", folder)
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        if damage == "pickled weights":
            torch.save(load_file(weights), folder / "unet" / "diffusion_pytorch_model.bin")
        weights.unlink()
    with pytest.raises(ModelUnusable, match="cannot be loaded"):
        start(ModelSettings(source=str(folder)))


def test_the_thread_count_of_the_settings_is_the_one_that_renders(
    start: Callable[[ModelSettings], Engine], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(ModelSettings(source=str(models / "sd"), threads=2))
    unet = renderer_of(engine)._pipeline.unet
    seen: list[int] = []
    unet.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    render(engine)
    assert set(seen) == {2}
