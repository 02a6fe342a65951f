"""Fused passes over all tensors of a network at once: one interface, three back ends, the same bits.

`torch_` runs everywhere and is the reference, `numba_` is fast on the CPU, `triton_` on CUDA. Each is a folder with a
module for every family of passes, which the module of the same name here describes: `weights`, `activation`, `channels`
and `learned_steps`. This module chooses the back end.

Every element gets the same bits in all three, for any number of threads. Sums are taken in float64, in an order that is
fixed for each back end, so their last bits may differ between back ends.
"""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch

from adapt.kernels.weights import Kernels, Rounding, Treatment, Update

__all__ = ["Kernels", "Rounding", "Treatment", "Update", "backend", "family_module", "name_for", "set_backend"]

NAMES = ("torch", "numba", "triton")
_forced: str | None = None


def set_backend(name: str | None) -> None:
    """Force one back end, "torch", "numba" or "triton", for every device; None restores the choice by device.

    The environment variable ADAPT_BACKEND has the same effect unless this function forces a back end. A controller
    keeps the back end that was chosen when it was attached.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the back end's package cannot be imported.
    """
    global _forced
    if name is not None:
        _load(_known(name, "name"))
    _forced = name


def backend(device: torch.device | str) -> Kernels:
    """Return the kernels for float32 tensors on `device`: numba on the CPU, triton on CUDA, torch elsewhere.

    If numba or triton cannot be imported, torch takes its place, unless that back end was forced.

    Raises:
        ValueError: ADAPT_BACKEND is an unknown name.
        RuntimeError: the forced back end does not work on this device or cannot be imported.
    """
    return _load(name_for(device))


def name_for(device: torch.device | str) -> str:
    """Return the name of the back end that `backend` chooses for this device."""
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    return _name_for(_forced or os.environ.get("ADAPT_BACKEND"), kind)


def family_module(family: str, device: torch.device | str) -> Any:
    """Return the module `adapt.kernels.<name>_.<family>` of the back end for this device, or torch's if it has none."""
    return _family_module(family, name_for(device))


@cache
def _family_module(family: str, name: str) -> Any:
    module = f"adapt.kernels.{name}_.{family}"
    return import_module(module if find_spec(module) else f"adapt.kernels.torch_.{family}")


@cache
def _name_for(forced: str | None, device: str) -> str:
    if not forced:
        return next(name for name in ("numba", "triton", "torch") if _works_on(name, device) and _importable(name))
    _load(_known(forced, "ADAPT_BACKEND"))
    if not _works_on(forced, device):
        interpreter = ", or set TRITON_INTERPRET=1" if (forced, device) == ("triton", "cpu") else ""
        raise RuntimeError(
            f"the {forced} back end was forced but cannot work on {device}: call set_backend(None) "
            f"and unset ADAPT_BACKEND, or move the tensors{interpreter}"
        )
    return forced


def _known(name: str, argument: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _works_on(name: str, device: str) -> bool:
    if name == "triton":
        return device == "cuda" or (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return name == "torch" or device == "cpu"


@cache
def _load(name: str) -> Kernels:
    try:
        return cast(Kernels, import_module(f"adapt.kernels.{name}_.weights"))
    except ImportError as error:
        raise RuntimeError(
            f"the {name} back end cannot be imported ({error}): install {name} or choose torch"
        ) from error


@cache
def _importable(name: str) -> bool:
    try:
        _load(name)
    except RuntimeError:
        return False
    return True
