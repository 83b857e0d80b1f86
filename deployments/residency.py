"""Adapters on the device: loaded once, active for one job alone, the least recently used one leaves first."""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from deployments.adapters import SUFFIX, AdapterCatalogue, AdapterFile
from deployments.errors import AdapterUnusable
from deployments.pipelines.base import Pipeline
from deployments.torch_device import is_device_lost, is_out_of_memory
from observability.logs import get_logger

_log = get_logger("adapters")


@dataclass(frozen=True, slots=True)
class _Resident:
    key: str
    version: tuple[int, int, int]


class AdapterResidency:
    """The adapters that a pipeline holds. Used by the device thread alone.

    Between jobs every adapter layer is disabled, and a disabled layer calls its base layer and nothing else: a job
    without adapter computes the same bits whatever is loaded.
    """

    def __init__(self, pipeline: Pipeline, catalogue: AdapterCatalogue) -> None:
        self._pipeline = pipeline
        self._catalogue = catalogue
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._keys = (f"adapter_{number}" for number in itertools.count())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters on the device, the next to leave first."""
        return tuple(self._residents)

    def holds_more_than(self, name: str | None) -> bool:
        """Return whether adapters are on the device that a job with the adapter `name` does not need."""
        return any(resident != (name or "").removesuffix(SUFFIX) for resident in self._residents)

    @contextlib.contextmanager
    def active(self, name: str | None) -> Iterator[None]:
        """Apply the adapter `name` inside, loading it if it is not there. Raises UnknownAdapter, AdapterUnusable."""
        if name is None:
            yield
            return
        key = self._ensure(self._catalogue.resolve(name))
        try:
            self._enable(key)
            yield
        finally:
            self._disable_all()

    def clear(self) -> None:
        """Remove all adapters from the device."""
        self._residents.clear()
        if hasattr(self._pipeline, "unload_lora_weights"):
            self._pipeline.unload_lora_weights()

    def _ensure(self, file: AdapterFile) -> str:
        resident = self._residents.get(file.name)
        if resident is not None and resident.version == file.version:
            self._residents.move_to_end(file.name)
            return resident.key
        if resident is not None:
            self._evict(file.name)
        while len(self._residents) >= self._catalogue.settings.max_resident:
            self._evict(next(iter(self._residents)))
        resident = _Resident(next(self._keys), file.version)
        self._load(file, resident.key)
        self._residents[file.name] = resident
        return resident.key

    def _evict(self, name: str) -> None:
        self._pipeline.delete_adapters(self._residents.pop(name).key)

    def _load(self, file: AdapterFile, key: str) -> None:
        if not hasattr(self._pipeline, "load_lora_weights"):
            raise AdapterUnusable("This model takes no adapters.")
        try:
            # A dictionary of tensors, never the path: given a path, diffusers may fall back to unpickling.
            self._pipeline.load_lora_weights(self._weights(file), adapter_name=key)
            self._check_applied(file, key)
        except Exception as error:
            self._forget(key)
            # A device says only at the next call that waits for it what an earlier job did to it.
            if isinstance(error, AdapterUnusable) or is_out_of_memory(error) or is_device_lost(error):
                raise
            _log.warning("adapter %s does not load", file.name, exc_info=error)
            raise AdapterUnusable(f"The adapter {file.name!r} does not fit this model.") from None
        finally:
            self._disable_all()

    def _weights(self, file: AdapterFile) -> dict[str, torch.Tensor]:
        device, dtype = self._pipeline.device, self._pipeline.dtype
        # Not mapped into memory, as by default: on the CPU the weights would stay in a file that may change or go.
        stored = load_file(file.path, device=str(device), backend="pread")
        # Scalars are the layers' alpha, which is read as a number and must not be rounded.
        weights = {key: tensor.to(dtype) if tensor.ndim > 1 else tensor for key, tensor in stored.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise AdapterUnusable(f"The adapter {file.name!r} has weights that are not finite in {dtype}.")
        return weights

    def _check_applied(self, file: AdapterFile, key: str) -> None:
        # diffusers only logs the layers it does not know; the picture would silently be another one.
        applied = sum(1 for layer in self._layers() if key in _adapters_of(layer))
        if applied < file.layers:
            raise AdapterUnusable(
                f"The adapter {file.name!r} is for another model: {file.layers - applied} of its {file.layers} layers "
                "do not exist here."
            )

    def _forget(self, key: str) -> None:
        """Remove what a failed load left behind; if that fails too, remove every adapter."""
        with contextlib.suppress(Exception):
            self._pipeline.delete_adapters(key)
        if any(key in _adapters_of(layer) for layer in self._layers()):
            self.clear()

    def _enable(self, key: str) -> None:
        for layer in self._layers():
            owns = key in _adapters_of(layer)
            layer.enable_adapters(owns)
            if owns:
                layer.set_adapter(key)

    def _disable_all(self) -> None:
        for layer in self._layers():
            layer.enable_adapters(False)

    def _layers(self) -> Iterator[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415  (slow; needed with adapters only)

        for component in self._pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                yield from (module for module in component.modules() if isinstance(module, BaseTunerLayer))


def _adapters_of(layer: Any) -> set[str]:
    return {name for attribute in layer.adapter_layer_names for name in getattr(layer, attribute, ())}
