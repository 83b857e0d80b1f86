"""Adapters on a real engine: each counts for its own job, and none leaves a trace."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rendering_kit import render, renderer_of, submit
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_unet_adapter

from deployments.engine import Engine
from deployments.models import AdapterSettings, ModelSettings


def test_an_adapter_counts_for_its_job_alone_and_the_least_used_one_leaves(sd: Engine) -> None:
    base = render(sd).artifact.sha256
    hashes = {name: render(sd, adapter=name).artifact.sha256 for name in ("style", "other", "words")}
    assert len({base, *hashes.values()}) == 4
    assert len(renderer_of(sd)._adapters.names) == 2
    assert renderer_of(sd)._adapters.names == ("other", "words")
    assert render(sd, adapter="style").artifact.sha256 == hashes["style"]
    assert renderer_of(sd)._adapters.names == ("words", "style")
    assert render(sd).artifact.sha256 == base


def test_a_replaced_adapter_file_is_loaded_again(sd: Engine, adapter_folder: Path) -> None:
    file = adapter_folder / "changing.safetensors"
    save_unet_adapter(file, seed=3)
    before = render(sd, adapter="changing").artifact.sha256
    save_unet_adapter(adapter_folder / "new", seed=4)
    (adapter_folder / "new").replace(file)
    assert render(sd, adapter="changing").artifact.sha256 != before
    file.unlink()
    assert submit(sd, adapter="changing").failed().error_code == "unknown_adapter"


def break_adapter(adapter_folder: Path, how: str) -> None:
    tensors = load_file(adapter_folder / "style.safetensors")
    first = next(iter(tensors))
    if how == "layers of another model":
        tensors = {key.replace("down_blocks.1", "down_blocks.7"): tensor for key, tensor in tensors.items()}
    elif how == "wrong width":
        tensors = {k: torch.zeros(99, t.shape[1]) if "lora_B" in k else t for k, t in tensors.items()}
    elif how == "not finite":
        tensors[first] = torch.full_like(tensors[first], torch.nan)
    save_file(tensors, adapter_folder / "broken.safetensors")
    if how == "not safetensors":
        (adapter_folder / "broken.safetensors").write_bytes(b"\x80\x04 a pickle")


@pytest.mark.parametrize("how", ["layers of another model", "wrong width", "not finite", "not safetensors"])
def test_a_broken_adapter_fails_its_own_job_with_a_sentence(sd: Engine, adapter_folder: Path, how: str) -> None:
    before = render(sd).artifact.sha256, render(sd, adapter="style").artifact.sha256
    break_adapter(adapter_folder, how)
    failed = submit(sd, adapter="broken").failed()
    assert failed.error_code == "adapter_unusable"
    assert failed.error.startswith("The adapter 'broken' ")
    (adapter_folder / "broken.safetensors").unlink()
    assert (render(sd).artifact.sha256, render(sd, adapter="style").artifact.sha256) == before
    sd.check_health()


def test_an_adapter_in_use_does_not_hang_on_its_file(
    start: Callable[[ModelSettings], Engine],
    models: Path,
    adapter_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "style.safetensors"
    shutil.copy(adapter_folder / path.name, path)
    engine = start(
        ModelSettings(source=str(models / "sd"), threads=1, adapters=AdapterSettings(folder=str(path.parent)))
    )
    before = render(engine, adapter="style").artifact.sha256
    # A job that is under way has looked at the file already.
    catalogue = renderer_of(engine)._adapters._catalogue
    looked_at = catalogue.resolve("style")
    monkeypatch.setattr(type(catalogue), "resolve", lambda *_: looked_at)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert render(engine, adapter="style").artifact.sha256 == before
