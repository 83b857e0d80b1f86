"""The header of a LoRA file: what it says about itself, checked before a single weight is read.

Format: https://github.com/huggingface/safetensors (8 bytes little-endian length, JSON, then the tensors without gaps).
Key names: diffusers and peft (`unet.….lora_A.weight`, `unet.….lora.down.weight`), kohya (`lora_unet_….lora_down.weight`
with `.alpha`), XLabs' Flux (`double_blocks.0.processor.qkv_lora1.down.weight`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deployments.errors import AdapterUnusable

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 50_000

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_DOWN = re.compile(r"(.+?)[._](?:lora_A|lora\.down|lora_down|lora[12]\.down|down)\.(?:default\.)?weight$")
_UP = re.compile(r"(.+?)[._](?:lora_B|lora\.up|lora_up|lora[12]\.up|up)\.(?:default\.)?weight$")
_EXTRA = re.compile(r".+\.(?:alpha|lora_B\.bias|lora_up\.bias)$")
_TEXT_ENCODER = re.compile(r"(?:text_encoder|lora_te)")
_TRANSFORMER = re.compile(
    r"(?:^|[._])(?:transformer\.|lora_transformer_|diffusion_model\.)|(?:double|single)_blocks|"
    r"single_transformer_blocks"
)
_CROSS = re.compile(r"attn2[._](?:processor[._])?to_[kv]")
_SELF = re.compile(r"(?:^|\.)(?:single_)?transformer_blocks\.\d+\.attn\.to_[qkv]$")


@dataclass(frozen=True, slots=True)
class LoraHeader:
    """Largest rank, number of layers, and the widths that tell model families apart (None: no key shows them)."""

    rank: int
    layers: int
    denoiser: Literal["unet", "transformer"] | None
    cross_attention_dim: int | None
    inner_dim: int | None


class _Tensor(BaseModel):
    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: list[int] = Field(max_length=5)
    data_offsets: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count * _ITEM_BYTES[self.dtype]


_Tensors = TypeAdapter(dict[str, _Tensor])


def read_lora_header(name: str, path: Path) -> LoraHeader:
    """Read and check the header of the adapter `name` at `path`. Raises AdapterUnusable, OSError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise AdapterUnusable(f"The adapter {name!r} is not a safetensors file.")
        raw = file.read(length)
        size_bytes = file.seek(0, 2)
    tensors = _parse(name, raw)
    _check_layout(name, tensors, size_bytes - 8 - length)
    return _summary(name, tensors)


def _parse(name: str, raw: bytes) -> dict[str, _Tensor]:
    try:
        parsed: Any = json.loads(raw)
        if isinstance(parsed, dict):
            parsed.pop("__metadata__", None)
            # Counted before each is read: a header of 16 MiB has room for half a million.
            _check_count(name, len(parsed))
        tensors = _Tensors.validate_python(parsed)
    except (ValueError, RecursionError, ValidationError) as error:
        raise AdapterUnusable(f"The adapter {name!r} is not a safetensors file, or its header is damaged.") from error
    return tensors


def _check_count(name: str, tensors: int) -> None:
    if not 0 < tensors <= MAX_TENSORS:
        raise AdapterUnusable(f"The adapter {name!r} has {tensors} tensors; allowed are 1 to {MAX_TENSORS}.")


def _check_layout(name: str, tensors: Mapping[str, _Tensor], data_bytes: int) -> None:
    for key, tensor in tensors.items():
        if tensor.dtype not in _ITEM_BYTES:
            raise AdapterUnusable(
                f"The adapter {name!r} stores {key[:80]!r} as {tensor.dtype[:20]}; use F32, F16 or BF16."
            )
        if any(length <= 0 for length in tensor.shape):
            raise AdapterUnusable(f"The adapter {name!r} has an empty tensor {key[:80]!r}.")
    spans = sorted(tensor.data_offsets for tensor in tensors.values())
    whole = spans[0][0] == 0 and spans[-1][1] == data_bytes and all(a[1] == b[0] for a, b in pairwise(spans))
    if not whole or any(t.data_offsets[1] - t.data_offsets[0] != t.size_bytes for t in tensors.values()):
        raise AdapterUnusable(f"The adapter {name!r} is damaged or cut off: its tensors do not fill the file.")


def _summary(name: str, tensors: Mapping[str, _Tensor]) -> LoraHeader:
    down = {match[1]: tensor for key, tensor in tensors.items() if (match := _DOWN.match(key))}
    up = {match[1]: tensor for key, tensor in tensors.items() if (match := _UP.match(key))}
    strange = [key for key in tensors if not (_DOWN.match(key) or _UP.match(key) or _EXTRA.match(key))]
    if strange:
        raise AdapterUnusable(
            f"The adapter {name!r} is no plain LoRA: it has the tensor {strange[0][:80]!r}, which this service would "
            "ignore."
        )
    _check_pairs(name, down, up)
    layers = [layer for layer in down if not _TEXT_ENCODER.match(layer)]
    transformer = any(_TRANSFORMER.search(layer) for layer in layers)
    return LoraHeader(
        rank=max(tensor.shape[0] for tensor in down.values()),
        layers=len(down),
        denoiser=("transformer" if transformer else "unet") if layers else None,
        cross_attention_dim=_width(down, _CROSS),
        inner_dim=_width(down, _SELF),
    )


def _check_pairs(name: str, down: Mapping[str, _Tensor], up: Mapping[str, _Tensor]) -> None:
    if down.keys() != up.keys() or not down:
        raise AdapterUnusable(f"The adapter {name!r} is incomplete: each layer needs a down and an up matrix.")
    for layer, first in down.items():
        second = up[layer]
        if len(first.shape) < 2 or len(second.shape) < 2 or first.shape[0] != second.shape[1]:
            raise AdapterUnusable(f"The adapter {name!r} is damaged: the matrices of {layer[:80]!r} do not fit.")


def _width(down: Mapping[str, _Tensor], pattern: re.Pattern[str]) -> int | None:
    """Return the input width of the first layer whose name matches; it is the second dimension of its down matrix."""
    return next((tensor.shape[1] for layer, tensor in down.items() if pattern.search(layer)), None)
