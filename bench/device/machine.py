"""Which device, driver and versions a figure belongs to."""

import os
import platform
import re
from pathlib import Path

import diffusers
import torch
import transformers

from bench.device.results import Machine
from deployments.torch_device import device_label

_NVIDIA_VERSION = Path("/proc/driver/nvidia/version")


def describe_machine(device: torch.device, threads: int) -> Machine:
    """Describe this machine and `device`; what cannot be found out is None."""
    cuda = device.type == "cuda"
    return Machine(
        device=device_label(device),
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else None,
        driver=_driver() if cuda else None,
        cuda=torch.version.cuda if cuda else None,
        cudnn=torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        system=_system(),
        cpu=_cpu(),
        cpu_count=os.cpu_count() or 1,
        threads=threads,
        load_before=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel module, which Linux shows as text."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", _NVIDIA_VERSION.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found.group() if found else None


def _system() -> str:
    # What follows the first dash of a kernel's release names a distribution or a host; it is published.
    return f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}"


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()
