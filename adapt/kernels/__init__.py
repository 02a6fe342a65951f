"""Fused passes over all tensors of a network at once: one interface, three back ends, the same bits.

`torch_` runs everywhere and is the reference, `numba_` is the fast one on the CPU, `triton_` on CUDA.
What one element becomes is identical in all three, whatever the number of threads; sums are taken in float64 in an
order that each back end fixes for itself, so between back ends they may differ in the last bits.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAMES = ("torch", "numba", "triton")
_forced: str | None = None


class Kernels(Protocol):
    """What a back end offers. Tensors of one list belong to different layers; lists run side by side.

    Every tensor is dense float32, those of one layer share shape and strides, all lie on one device. "Memory order"
    is the order of the elements in memory, whatever the order of the dimensions. Nothing waits for the device.

    Shapes, with L layers: `grids` float32 [L, 4], one row (2^FL, 2^−FL, low, high) of `adapt.rounding.grid` per layer,
    where scale 0 leaves the layer in float32; `keys` uint64 [L] from `adapt.rounding.stream_keys`; `offsets` int64 [L],
    the index of the tensor's first element in its layer (non-zero for shards). These three are NumPy arrays.
    """

    def quantize_(
        self,
        sources: Sequence[Tensor],
        outputs: Sequence[Tensor],
        grids: NDArray[np.floating],
        keys: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        nonzeros: Tensor | None = None,
        *,
        stochastic: bool,
    ) -> None:
        """outputs[i] ← Q(sources[i]). An output may be its own source.

        `nonzeros`, where it is given, is a float64 tensor [L] on the device: it counts what is not zero in the outputs.
        """

    def store_(
        self,
        parameters: Sequence[Tensor],
        masters: Sequence[Tensor],
        grids: NDArray[np.floating],
        keys: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        nonzeros: Tensor,
        *,
        stochastic: bool,
    ) -> None:
        """masters[i] ← parameters[i], then parameters[i] ← Q(masters[i]); nonzeros [L] counts what is not zero in it.

        `nonzeros` is a float64 tensor on the device.
        """

    def squared_norms_(self, tensors: Sequence[Tensor], out: Tensor) -> None:
        """out[i] ← ‖tensors[i]‖₂², summed in float64. `out` is a float64 tensor [L] on the device."""

    def restore_(
        self,
        parameters: Sequence[Tensor] | None,
        masters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        sums: Sequence[Tensor | None],
        squared: Tensor,
        l1: Sequence[float] | NDArray[np.floating],
        l2: Sequence[float] | NDArray[np.floating],
        statistics: Tensor,
        *,
        normalize: bool,
    ) -> None:
        """parameters[i] ← masters[i], and gradients[i] becomes what the optimizer sees.

        Where squared[i] = ‖gradients[i]‖₂² is finite: sums[i] += g, then
        g ← g·c + (l1[i]·sign(m) + l2[i]·m), with c = 1/√squared[i] if `normalize` and squared[i] > 0, otherwise 1, and
        no penalty term at all where both coefficients are 0. Where it is not finite: g ← 0 and the sum stays.
        A layer without a gradient keeps its sum; a layer without a sum has none to add to.

        Args:
            parameters: None where nothing is to be written but gradients and sums.
            squared: float64 [L] on the device; entries of layers without a gradient are not read.
            l1, l2: penalty coefficients [L], used in float32.
            statistics: float64 [L, 3] on the device ← (‖sum‖₂² afterwards, ‖m‖₁, ‖m‖₂²); 0 where there is no sum.
        """


def set_backend(name: str | None) -> None:
    """Force one back end, "torch", "numba" or "triton", for every device; None lets the device choose again.

    The environment variable ADAPT_BACKEND does the same where this function was not called.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the back end's package cannot be imported.
    """
    global _forced
    if name is not None:
        _load(_known(name, "name"))
    _forced = name


def backend(device: torch.device | str) -> Kernels:
    """The kernels for float32 tensors on `device`: numba on the CPU, triton on CUDA, torch elsewhere.

    Where numba or triton cannot be imported, torch takes its place, unless it was asked for by name.

    Raises:
        ValueError: ADAPT_BACKEND holds an unknown name.
        RuntimeError: the forced back end does not work on this device or cannot be imported.
    """
    device = torch.device(device)
    forced = _forced or os.environ.get("ADAPT_BACKEND")
    if forced:
        kernels = _load(_known(forced, "ADAPT_BACKEND"))
        if not _works_on(forced, device):
            interpreter = ", or set TRITON_INTERPRET=1" if (forced, device.type) == ("triton", "cpu") else ""
            raise RuntimeError(
                f"the {forced} back end was forced but cannot work on {device}: call set_backend(None) "
                f"and unset ADAPT_BACKEND, or move the tensors{interpreter}"
            )
        return kernels
    for name in ("numba", "triton"):
        if _works_on(name, device) and _importable(name):
            return _load(name)
    return _load("torch")


def _known(name: str, argument: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _works_on(name: str, device: torch.device) -> bool:
    if name == "triton":
        return device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return name == "torch" or device.type == "cpu"


@cache
def _load(name: str) -> Kernels:
    try:
        return cast(Kernels, import_module(f"adapt.kernels.{name}_"))
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
