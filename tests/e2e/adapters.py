"""Adapters that the tests of the running service use: small, random, and made for the embedded model or for another."""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from deployments.embedded import MODEL_FOLDER

RANK = 2
_ADAPTED = (".attn2.to_q.weight", ".attn2.to_v.weight")


def save_adapters(folder: Path) -> None:
    """Write `strong` (fits the embedded model and changes its pictures) and `foreign` (made for a wider model)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = MODEL_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, framework="numpy") as file:
        shapes = {
            name.removesuffix(".weight"): file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118 - it is no dict
            if name.endswith(_ADAPTED)
        }
    assert shapes, "the embedded model has no cross-attention to adapt"
    save_file(_random(shapes, seed=1), folder / "strong.safetensors")
    wider = {layer: (shape[0] * 2, shape[1] * 8) for layer, shape in shapes.items()}
    save_file(_random(wider, seed=2), folder / "foreign.safetensors")


def _random(shapes: dict[str, tuple[int, int]], seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer, (width_out, width_in) in shapes.items():
        tensors[f"unet.{layer}.lora_A.weight"] = generator.normal(size=(RANK, width_in)).astype(np.float32)
        tensors[f"unet.{layer}.lora_B.weight"] = generator.normal(size=(width_out, RANK)).astype(np.float32)
    return tensors
