"""Description of the machine on which a measurement is taken."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from adapt.profiling.calibration import processor

PACKAGES = ("torch", "numpy", "numba", "triton", "qtorch", "brevitas")


def describe(device: torch.device, threads: int, *, memory_kept: bool = False) -> dict[str, Any]:
    """The machine, the settings and the versions of the packages; None for a package that is not installed."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": threads,
        "memory": "freed memory is kept" if memory_kept else "as the allocator sees fit",
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def slug(description: dict[str, Any]) -> str:
    """A file name for the machine: the model of its GPU or processor, cores and threads; never the host's name."""
    model = description["processor"] if description["device"] == "cpu" else description["device"]
    text = f"{model} {description['cores']} cores {description['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
