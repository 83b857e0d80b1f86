"""The models to measure, as far as the device has room for them."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.device.random_models import RandomFlux, RandomSdxl, Scale
from deployments.embedded import ADAPTER_FOLDER, MODEL_FOLDER
from deployments.models import AdapterSettings, ModelSettings
from deployments.pipelines.base import Family
from deployments.pipelines.registry import FAMILIES

ModelName = Literal["embedded", "sdxl", "flux"]

DEFAULT_STEPS = 8
"""Few, on purpose: the fewer steps, the larger the part of a picture's time that is the engine's own."""

QUEUE_SIZE = 256
"""Jobs that an engine takes at a time: all that a check sends, so that none is ever refused."""

# Weights in half precision, and as much again as a 1024 x 1024 picture needs beside them (SDXL decodes in float32).
_ROOM_BYTES: dict[ModelName, int] = {"embedded": 1 << 30, "sdxl": 18 << 30, "flux": 42 << 30}
_GUIDANCE: dict[ModelName, float] = {"embedded": 7.0, "sdxl": 5.0, "flux": 3.5}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure, and how its pictures are asked for."""

    name: ModelName
    scale: Scale
    steps: int
    guidance: float

    @property
    def label(self) -> str:
        """How tables and results call it."""
        return self.name if self.name == "embedded" else f"{self.name}-random-{self.scale}"


def choose_subject(name: ModelName, scale: Scale | None, steps: int | None, device: torch.device) -> Subject:
    """Return the model; random weights are of the real size on CUDA, tiny elsewhere, unless `scale` says otherwise."""
    chosen: Scale = scale or ("real" if device.type == "cuda" else "tiny")
    return Subject(name, chosen, steps or DEFAULT_STEPS, _GUIDANCE[name])


def missing_room(subject: Subject, device: torch.device) -> str | None:
    """Say in a sentence why the device cannot hold the model; None if it can, or if there is no way to know."""
    if device.type != "cuda" or subject.scale == "tiny":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    needed = _ROOM_BYTES[subject.name]
    if free >= needed:
        return None
    return f"{device} has {free / 2**30:.0f} GiB free, and {subject.label} needs about {needed / 2**30:.0f}."


@contextlib.contextmanager
def settings_of(subject: Subject, device: torch.device, folder: Path, threads: int) -> Iterator[ModelSettings]:
    """Yield settings under which the engine loads the model. Random families are known only inside."""
    common = {"name": subject.name, "threads": threads, "queue_size": QUEUE_SIZE, "step_timeout_s": 600.0}
    if subject.name == "embedded":
        adapters = AdapterSettings(folder=str(ADAPTER_FOLDER))
        yield ModelSettings.model_validate(common | {"source": str(MODEL_FOLDER), "adapters": adapters})
        return
    family = (RandomSdxl if subject.name == "sdxl" else RandomFlux)(subject.scale, device)
    with _registered(family):
        yield ModelSettings.model_validate(common | {"source": str(_index_folder(family, folder))})


@contextlib.contextmanager
def _registered(family: Family) -> Iterator[None]:
    FAMILIES[family.name] = family
    try:
        yield
    finally:
        del FAMILIES[family.name]


def _index_folder(family: Family, folder: Path) -> Path:
    """Write what the engine reads to find the family: a model folder without weights."""
    source = folder / family.name
    source.mkdir(parents=True, exist_ok=True)
    (source / "model_index.json").write_text(json.dumps({"_class_name": family.pipeline_classes[0]}), encoding="utf-8")
    return source
