"""The device under torch: which one, how it is made to repeat itself bit by bit, and what its errors mean."""

import gc
import os
import traceback
from collections.abc import Iterable

import torch

from deployments.errors import ModelUnusable

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def select_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes the first GPU, else Apple's, else the CPU.

    Raises ModelUnusable if this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present.get(device.type, False):
        raise ModelUnusable(f"The device {name!r} is not available here; set device to auto or cpu.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def device_label(device: torch.device) -> str:
    """Return the device's name with its product name, such as `cuda:0 NVIDIA H100`."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def select_dtype(name: str, device: torch.device, gpu_default: str) -> torch.dtype:
    """Return the dtype called `name`; `auto` is `gpu_default` on CUDA and float32 elsewhere."""
    if name == "auto":
        name = gpu_default if device.type == "cuda" else "float32"
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ModelUnusable(f"There is no dtype {name!r}.")
    return dtype


def select_memory_format(name: str, device: torch.device) -> torch.memory_format:
    """Return the memory format called `name`; `auto` is channels_last on the CPU, and diffusers' contiguous elsewhere.

    oneDNN computes some decoders in half the time with channels_last (`make gpu-check`, part layout).
    """
    if name == "auto":
        name = "channels_last" if device.type == "cpu" else "contiguous"
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def lay_out(modules: Iterable[object], memory_format: torch.memory_format) -> None:
    """Put the weights of two-dimensional convolutions into `memory_format`; what they compute then follows.

    `modules` may hold things that are no modules. `Module.to` would refuse channels_last for a model that has
    three-dimensional convolutions too.
    """
    for module in modules:
        if isinstance(module, torch.nn.Module):
            for layer in module.modules():
                if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                    layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)


class DtypeRecord:
    """The dtypes that modules were loaded with, and may have lost.

    diffusers casts SDXL's decoder to float32 for each half-precision picture, and back only if nothing is raised.
    """

    def __init__(self, modules: Iterable[object]) -> None:
        layers = [layer for module in modules if isinstance(module, torch.nn.Module) for layer in module.modules()]
        # Parameters outlive what adapters wrap around their layers; buffers are replaced by a cast.
        self._parameters = [(one, one.dtype) for layer in layers for one in layer.parameters(recurse=False)]
        self._buffers = [
            (layer, name, one.dtype) for layer in layers for name, one in layer.named_buffers(recurse=False)
        ]

    def restore(self) -> None:
        """Cast back what has another dtype now; a cast there and back to a wider dtype changes no bit."""
        for parameter, dtype in self._parameters:
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
        for layer, name, dtype in self._buffers:
            buffer = layer.get_buffer(name)
            if buffer.dtype != dtype:
                setattr(layer, name, buffer.to(dtype))


def make_exact(threads: int) -> None:
    """Switch torch to kernels that repeat themselves, for this process; call it on the thread that renders.

    Sums are split among threads, so the number of threads is part of the result. Source: "Reproducibility" in torch's
    notes; cuBLAS: "Results reproducibility" in its documentation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    pin_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would fill each new tensor with NaN to expose reads of fresh memory: a debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def pin_threads(threads: int) -> None:
    """Let kernels that this thread starts use `threads` CPU threads."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that device or host memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(known in text for known in _OUT_OF_MEMORY_TEXTS)


def is_device_lost(error: BaseException) -> bool:
    """Return whether `error`, or one that it came of, leaves the CUDA context unusable for the rest of the process."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.AcceleratorError) and not is_out_of_memory(cause):
            return True
        cause = cause.__context__
    return False


def free_memory(error: BaseException | None) -> None:
    """Give back device memory, including what `error`'s traceback keeps alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
