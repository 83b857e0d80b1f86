"""The catalogue of adapters: which lie in the configured folder, and whether one fits the model. Imports no torch.

An adapter is `<name>.safetensors`, or a folder `<name>` with `pytorch_lora_weights.safetensors`, as diffusers saves it.
Nothing but the file's header is read here, and nothing outside the folder is ever opened.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from deployments.errors import AdapterUnusable, UnknownAdapter
from deployments.lora_header import LoraHeader, read_lora_header
from deployments.models import AdapterSettings, ModelSettings, adapter_target
from deployments.pipelines.base import AdapterTarget

SUFFIX = ".safetensors"
FOLDER_FILE = "pytorch_lora_weights.safetensors"

_ANY_TARGET = AdapterTarget()
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._ -]{0,127}")


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter. `version` changes when the file is replaced; `layers` is how many layers it changes."""

    name: str
    path: Path
    version: tuple[int, int, int]
    rank: int
    layers: int


@dataclass(frozen=True, slots=True)
class AdapterCatalogue:
    """The adapters of one model. The folder is read at each call, so files may come and go while the service runs."""

    settings: AdapterSettings
    target: AdapterTarget = _ANY_TARGET

    @classmethod
    def of(cls, model: ModelSettings) -> "AdapterCatalogue":
        """Return the catalogue of a model, as far as its folder tells what fits it."""
        return cls(model.adapters, adapter_target(model))

    def names(self) -> tuple[str, ...]:
        """Return the names that `resolve` would find, sorted; whether each one fits is not looked at."""
        if self.settings.folder is None:
            return ()
        try:
            entries = sorted(path.name for path in Path(self.settings.folder).iterdir())
        except OSError:
            return ()
        names = (entry.removesuffix(SUFFIX) for entry in entries)
        return tuple(dict.fromkeys(name for name in names if _NAME.fullmatch(name) and self._find(name)))

    def resolve(self, name: str) -> AdapterFile:
        """Return the adapter called `name` (with or without `.safetensors`), after checking its header.

        Raises UnknownAdapter for whatever is not the plain name of a file in the folder, paths included, and
        AdapterUnusable if the file is damaged, too large, no LoRA, or made for another family.
        """
        plain = name.removesuffix(SUFFIX)
        path = self._find(plain) if _NAME.fullmatch(plain) else None
        if path is None:
            raise UnknownAdapter(name, self.names())
        try:
            status = path.stat()
            self._check_size(plain, status.st_size)
            header = read_lora_header(plain, path)
        except OSError as error:
            raise AdapterUnusable(f"The adapter {plain!r} cannot be read.") from error
        check_fit(plain, header, self.target, self.settings.max_rank)
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        return AdapterFile(plain, path, version, header.rank, header.layers)

    def _find(self, plain: str) -> Path | None:
        if self.settings.folder is None:
            return None
        folder = Path(os.path.realpath(self.settings.folder))
        for candidate in (folder / f"{plain}{SUFFIX}", folder / plain / FOLDER_FILE):
            # The real path is what gets opened later: a link that leads out of the folder is not one of its files.
            real = Path(os.path.realpath(candidate))
            if real.is_relative_to(folder) and real.is_file():
                return real
        return None

    def _check_size(self, name: str, size_bytes: int) -> None:
        limit = self.settings.max_size_bytes
        if size_bytes > limit:
            raise AdapterUnusable(f"The adapter {name!r} has {size_bytes} bytes; the limit is {limit}.")


def check_fit(name: str, header: LoraHeader, target: AdapterTarget, max_rank: int) -> None:
    """Raise AdapterUnusable if an adapter is too large in rank or made for another kind of model than `target`."""
    if header.rank > max_rank:
        raise AdapterUnusable(f"The adapter {name!r} has rank {header.rank}; the limit is {max_rank}.")
    if target.denoiser and header.denoiser and header.denoiser != target.denoiser:
        raise AdapterUnusable(
            f"The adapter {name!r} is for another model family: it changes a {header.denoiser}, "
            f"and this model has a {target.denoiser}."
        )
    for what, of_adapter, of_model in (
        ("cross-attention", header.cross_attention_dim, target.cross_attention_dim),
        ("attention", header.inner_dim, target.inner_dim),
    ):
        if of_adapter and of_model and of_adapter != of_model:
            raise AdapterUnusable(
                f"The adapter {name!r} is for another model family: its {what} width is {of_adapter}, "
                f"this model's is {of_model}."
            )
