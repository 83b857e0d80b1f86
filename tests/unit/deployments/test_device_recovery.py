"""What the real engine does when the device's memory runs out, or the device fails."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rendering_kit import render, renderer_of, submit

from deployments.engine import Engine
from deployments.errors import EngineUnhealthy
from deployments.models import ModelSettings
from deployments.residency import AdapterResidency


def fail_once(monkeypatch: pytest.MonkeyPatch, engine: Engine, error: Exception, *, at_call: int = 1) -> None:
    unet = renderer_of(engine)._pipeline.unet
    forward, calls = unet.forward, itertools.count(1)

    def failing(*args: object, **kwargs: object) -> object:
        if next(calls) < at_call:
            return forward(*args, **kwargs)
        monkeypatch.setattr(unet, "forward", forward)
        raise error

    monkeypatch.setattr(unet, "forward", failing)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_fails_the_job_and_the_engine_proves_itself_before_the_next(
    own: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = render(own).artifact.sha256, render(own, adapter="style").artifact.sha256
    fail_once(monkeypatch, own, error)
    failed = submit(own, adapter="style").failed()
    assert failed.error_code == "out_of_memory"
    assert "64x64 pixels with this model and this adapter; ask" in failed.error
    assert renderer_of(own)._adapters.names == ()
    assert (render(own).artifact.sha256, render(own, adapter="style").artifact.sha256) == before


def test_a_decoder_that_was_left_in_another_dtype_is_put_back(
    start: Callable[[ModelSettings], Engine], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers casts the decoder to float32 for each picture, and back when nothing was raised.
    engine = start(ModelSettings(source=str(models / "sdxl"), dtype="float16", threads=1))
    before = render(engine).artifact.sha256
    vae = renderer_of(engine)._pipeline.vae
    decode = vae.decode

    def failing(*_: object, **__: object) -> None:
        assert vae.dtype == torch.float32
        monkeypatch.setattr(vae, "decode", decode)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(vae, "decode", failing)
    assert submit(engine).failed().error_code == "out_of_memory"
    assert vae.dtype == torch.float16
    assert render(engine).artifact.sha256 == before


def test_a_picture_that_other_jobs_adapters_leave_no_room_for_is_rendered_without_them(
    own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"prompt": "a cat " * 60 + "and at last a dog", "num_inference_steps": 2}
    alone = render(own, **wanted)
    before = render(own, adapter="style").artifact.sha256
    fail_once(monkeypatch, own, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), at_call=2)

    job = submit(own, **wanted)
    finished = job.finished()

    assert finished.artifact.sha256 == alone.artifact.sha256
    assert finished.warnings == alone.warnings
    assert len(finished.warnings) == 1
    assert job.steps() == [0, 1, 0, 1, 2]
    assert renderer_of(own)._adapters.names == ()
    assert render(own, adapter="style").artifact.sha256 == before


def test_an_adapter_that_others_leave_no_room_for_is_loaded_without_them(
    own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = render(own, adapter="other").artifact.sha256
    render(own, adapter="style")
    fail_once(monkeypatch, own, torch.OutOfMemoryError("out of memory"))

    assert render(own, adapter="other.safetensors").artifact.sha256 == before
    assert renderer_of(own)._adapters.names == ("other",)


def test_a_picture_that_does_not_fit_alone_either_is_refused(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    render(own, adapter="style")
    unet = renderer_of(own)._pipeline.unet
    forward, calls = unet.forward, []

    def failing(sample: torch.Tensor, *args: object, **kwargs: object) -> object:
        if sample.shape[-1] == sample.shape[-2]:  # the small picture of `recover`
            return forward(sample, *args, **kwargs)
        calls.append(1)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(unet, "forward", failing)
    failed = submit(own, width=128).failed()

    assert failed.error_code == "out_of_memory"
    assert "128x64 pixels with this model; ask" in failed.error
    assert len(calls) == 2
    own.check_health()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_device_that_is_lost_while_an_adapter_loads_is_no_fault_of_the_adapter(
    own: Engine, monkeypatch: pytest.MonkeyPatch, *, wrapped: bool
) -> None:
    def failing(*_: object, **__: object) -> None:
        try:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        except torch.AcceleratorError as error:
            if wrapped:
                raise RuntimeError("while loading") from error
            raise

    monkeypatch.setattr("deployments.residency.load_file", failing)
    assert isinstance(submit(own, adapter="style").end(), EngineUnhealthy)
    with pytest.raises(EngineUnhealthy, match="lost"):
        own.check_health()


@pytest.mark.parametrize("resident", [None, "style"])
def test_an_engine_that_renders_other_bits_after_an_error_is_given_up(
    own: Engine, monkeypatch: pytest.MonkeyPatch, resident: str | None
) -> None:
    """With another job's adapter on the device it is rendered once more, and must not be."""
    render(own, adapter=resident)
    fail_once(monkeypatch, own, torch.OutOfMemoryError("out of memory"))
    with torch.no_grad():
        renderer_of(own)._pipeline.vae.decoder.conv_out.bias.add_(1.0)
    assert isinstance(submit(own).end(), EngineUnhealthy)
    with pytest.raises(EngineUnhealthy, match="other pictures"):
        own.check_health()


def test_room_that_a_failed_load_made_by_itself_is_used(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = render(own, adapter="other").artifact.sha256
    renderer_of(own)._adapters.clear()
    render(own, adapter="style")
    load = AdapterResidency._load

    def failing(self: AdapterResidency, *_: object) -> None:
        monkeypatch.setattr(AdapterResidency, "_load", load)
        self.clear()
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(AdapterResidency, "_load", failing)
    assert render(own, adapter="other").artifact.sha256 == before


def test_an_unexpected_error_fails_its_job_alone(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = render(own).artifact.sha256
    fail_once(monkeypatch, own, ValueError("/secret"))
    assert submit(own).failed().error == "The model failed on this request (ValueError); the service's log says why."
    assert render(own).artifact.sha256 == before
