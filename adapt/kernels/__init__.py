"""Fused passes over all tensors of a network at once: one interface, three back ends, the same bits.

`torch_` runs everywhere and is the reference, `numba_` is the fast one on the CPU, `triton_` on CUDA: one folder each,
with a module for every family of passes. Those over weights are described here, the others in modules of their names.
What one element becomes is identical in all three, whatever the number of threads; sums are taken in float64 in an
order that each back end fixes for itself, so between back ends they may differ in the last bits.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAMES = ("torch", "numba", "triton")
_forced: str | None = None


class Rounding(NamedTuple):
    """How to round each of some tensors. NumPy arrays, with L tensors.

    Attributes:
        grids: float32 [L, 4], one row (2^FL, 2^−FL, low, high) of `adapt.rounding.grid` for each; scale 0 leaves it in
            float32.
        keys: uint64 [L], from `adapt.rounding.stream_keys`.
        offsets: int64 [L], the index of the tensor's first element in its layer, which is not 0 in shards.
        stochastic: stochastic rounding, or to nearest.
    """

    grids: NDArray[np.floating]
    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    stochastic: bool


class Treatment(NamedTuple):
    """What becomes of the gradient of each of L layers before the update: G/‖G‖₂ + α·sign(W) + β·W.

    With m an element of the master, g of the gradient: g·c + (l1·sign(m) + l2·m), every product and sum rounded to
    float32. c = 1/‖G‖₂ if `normalize` and ‖G‖₂ > 0, otherwise 1; no penalty term at all where both coefficients are 0.
    A gradient that is not finite becomes 0.

    Attributes:
        squared: ‖G‖₂², float64 [L] on the device; not read where there is no gradient.
        l1, l2: α and β, [L], used in float32.
        normalize: whether to divide by the norm.
    """

    squared: Tensor
    l1: Sequence[float] | NDArray[np.floating]
    l2: Sequence[float] | NDArray[np.floating]
    normalize: bool


class Update(NamedTuple):
    """A step of stochastic gradient descent on some parameters: see `Kernels.descend_`.

    Attributes:
        rates: float32 [L, 6], a row (rate, sign, decay, momentum, kept, nesterov) for each parameter; the rate is 0
            where there is no gradient.
        buffers: momentum buffers, laid out as the parameters; None where there is no momentum, or no gradient.
    """

    rates: NDArray[np.float32]
    buffers: list[Tensor | None]


class Kernels(Protocol):
    """What a back end offers. Tensors of one list belong to different layers; lists run side by side.

    Every tensor is dense float32, those of one layer share shape and strides, all lie on one device. "Memory order"
    is the order of the elements in memory, whatever the order of the dimensions. Nothing waits for the device. L is
    the number of layers.

    Figures of a layer are how many elements of what was rounded are not zero, and ‖x‖₁ and ‖x‖₂² of what it was rounded
    from: float64 [L, 3] on the device.
    """

    def quantize_(
        self, sources: Sequence[Tensor], outputs: Sequence[Tensor], rounding: Rounding, figures: Tensor | None = None
    ) -> None:
        """outputs[i] ← Q(sources[i]), and the figures where they are wanted. An output may be its own source."""

    def store_(
        self, parameters: Sequence[Tensor], masters: Sequence[Tensor], rounding: Rounding, figures: Tensor
    ) -> None:
        """masters[i] ← parameters[i], then parameters[i] ← Q(masters[i]), and the figures."""

    def squared_norms_(self, tensors: Sequence[Tensor | None], out: Tensor) -> None:
        """out[i] ← ‖tensors[i]‖₂², summed in float64; NaN where there is none. `out` is float64 [L] on the device."""

    def add_(
        self,
        sums: Sequence[Tensor | None],
        gradients: Sequence[Tensor | None],
        squared: Tensor,
        squared_sums: Tensor,
    ) -> None:
        """sums[i] += gradients[i] where squared[i] is finite, and squared_sums[i] ← ‖sums[i]‖₂² afterwards.

        Without a gradient the sum stays; without a sum `squared_sums` becomes 0.

        Args:
            squared: ‖gradients[i]‖₂², float64 [L] on the device; not read where there is no gradient.
            squared_sums: float64 [L] on the device.
        """

    def accumulate_(
        self,
        sums: Sequence[Tensor | None],
        gradients: Sequence[Tensor | None],
        squared: Tensor,
        squared_sums: Tensor,
    ) -> None:
        """`squared_norms_` of the gradients into `squared`, then `add_`."""

    def restore_(
        self,
        parameters: Sequence[Tensor] | None,
        masters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        treatment: Treatment,
    ) -> None:
        """parameters[i] ← masters[i], unless there are none, and gradients[i] becomes what the optimizer sees."""

    def descend_(
        self,
        parameters: Sequence[Tensor],
        masters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        buffers: Sequence[Tensor | None],
        treatment: Treatment,
        rates: NDArray[np.floating],
        rounding: Rounding,
        figures: Tensor,
    ) -> None:
        """A step of stochastic gradient descent on the masters, then parameters[i] ← Q(masters[i]), and the figures.

        With g the treated gradient (the gradient itself stays as it is) and m the master, every product and sum rounded
        to float32: d = sign·g + decay·m; where there is a buffer, buffer ← momentum·buffer + kept·d and then
        d ← d + momentum·buffer with `nesterov`, otherwise d ← buffer; m ← m + rate·d. A layer without a gradient
        keeps its master and its buffer.

        Args:
            buffers: None where there is no momentum, or no gradient.
            rates: float32 [L, 6], a row (rate, sign, decay, momentum, kept, nesterov) for each layer. Where decay is 0
                nothing is added.
        """


def set_backend(name: str | None) -> None:
    """Force one back end, "torch", "numba" or "triton", for every device; None lets the device choose again.

    The environment variable ADAPT_BACKEND does the same where this function was not called. A controller keeps the
    back end that it found when it was attached.

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
    device = device if isinstance(device, torch.device) else torch.device(device)
    forced = _forced or os.environ.get("ADAPT_BACKEND")
    return _forced_on(forced, device.type) if forced else _chosen_for(device.type)


def name_for(device: torch.device | str) -> str:
    """The name of the back end that `backend` chooses for this device."""
    return cast(Any, backend(device)).__name__.split(".")[-2].removesuffix("_")  # type: ignore[no-any-return]


def companion(family: str, device: torch.device | str) -> Any:
    """The passes of another family, `adapt.kernels.<name>_.<family>`, for this device; torch's where there are none."""
    return _companion(family, name_for(device))


@cache
def _companion(family: str, name: str) -> Any:
    module = f"adapt.kernels.{name}_.{family}"
    return import_module(module if find_spec(module) else f"adapt.kernels.torch_.{family}")


@cache
def _forced_on(name: str, device: str) -> Kernels:
    kernels = _load(_known(name, "ADAPT_BACKEND"))
    if not _works_on(name, device):
        interpreter = ", or set TRITON_INTERPRET=1" if (name, device) == ("triton", "cpu") else ""
        raise RuntimeError(
            f"the {name} back end was forced but cannot work on {device}: call set_backend(None) "
            f"and unset ADAPT_BACKEND, or move the tensors{interpreter}"
        )
    return kernels


@cache
def _chosen_for(device: str) -> Kernels:
    for name in ("numba", "triton"):
        if _works_on(name, device) and _importable(name):
            return _load(name)
    return _load("torch")


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
