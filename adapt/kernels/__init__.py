"""Fused passes over all tensors of a network at once: one interface, three back ends, the same bits.

`torch_` runs everywhere and is the reference, `numba_` is fast on the CPU, `triton_` on CUDA. Each is a folder with a
module for every family of passes. This module describes the passes over weights; `activation`, `channels` and
`learned_steps` describe the others. Every element gets the same bits in all three, for any number of threads. Sums are
taken in float64, in an order that is fixed for each back end, so their last bits may differ between back ends.
"""

import os
from collections.abc import Callable, Sequence
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
    """How to round each of L tensors, in NumPy arrays.

    Attributes:
        grids: float32 [L, 4], a row (2^FL, 2^−FL, low, high) of `adapt.rounding.grid` for each tensor; where 2^FL is 0
            the tensor stays in float32.
        keys: uint64 [L], from `adapt.rounding.stream_keys`.
        offsets: int64 [L], the index of the tensor's first element in its layer, which may be above 0 in shards.
        stochastic: stochastic rounding if True, otherwise rounding to nearest.
    """

    grids: NDArray[np.floating]
    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    stochastic: bool


class Treatment(NamedTuple):
    """How the gradient of each of L layers changes before the update: to G/‖G‖₂ + α·sign(W) + β·W.

    With m an element of the master weights and g of the gradient: g·c + (l1·sign(m) + l2·m), with every product and sum
    rounded to float32. c is 1/‖G‖₂ if `normalize` and ‖G‖₂ > 0, otherwise 1. If both coefficients are 0, no penalty
    term is added. A gradient that is not finite becomes 0.

    Attributes:
        squared: ‖G‖₂², float64 [L] on the device; not read for missing gradients.
        l1, l2: α and β, [L], used in float32.
        normalize: whether to divide by the norm.
    """

    squared: Tensor
    l1: Sequence[float] | NDArray[np.floating]
    l2: Sequence[float] | NDArray[np.floating]
    normalize: bool


class Update(NamedTuple):
    """A step of stochastic gradient descent on L parameters: see `Kernels.descend_`.

    Attributes:
        rates: float32 [L, 6], a row (rate, sign, decay, momentum, kept, nesterov) for each; the rate is 0 if there is
            no gradient.
        buffers: [L], the momentum buffers, laid out like the parameters; None without momentum or without a gradient.
    """

    rates: NDArray[np.float32]
    buffers: list[Tensor | None]


class Kernels(Protocol):
    """The passes over weights and gradients that every back end offers.

    Item i of every list belongs to layer i of L. Tensors are dense float32 on one device; those of one layer share
    shape and strides. "Memory order" is the order of the elements in memory, for any order of the dimensions. No pass
    waits for the device.

    The figures of a layer are the number of rounded elements that are not zero, and ‖x‖₁ and ‖x‖₂² of the elements
    before rounding: float64 [L, 3] on the device.
    """

    def quantize_(
        self, sources: Sequence[Tensor], outputs: Sequence[Tensor], rounding: Rounding, figures: Tensor | None = None
    ) -> None:
        """outputs[i] ← Q(sources[i]), and the figures unless they are None. An output may be its own source."""

    def store_(
        self, parameters: Sequence[Tensor], masters: Sequence[Tensor], rounding: Rounding, figures: Tensor
    ) -> None:
        """masters[i] ← parameters[i], then parameters[i] ← Q(masters[i]), and the figures."""

    def squared_norms_(self, tensors: Sequence[Tensor | None], out: Tensor) -> None:
        """out[i] ← ‖tensors[i]‖₂², or NaN if the tensor is None. `out` is float64 [L] on the device."""

    def add_(
        self,
        sums: Sequence[Tensor | None],
        gradients: Sequence[Tensor | None],
        squared: Tensor,
        squared_sums: Tensor,
    ) -> None:
        """sums[i] += gradients[i] if squared[i] is finite, then squared_sums[i] ← ‖sums[i]‖₂².

        Without a gradient the sum does not change; without a sum `squared_sums` becomes 0.

        Args:
            sums, gradients: the tensors; None if there is none.
            squared: ‖gradients[i]‖₂², float64 [L] on the device; not read for missing gradients.
            squared_sums: the output, float64 [L] on the device.
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
        """parameters[i] ← masters[i], unless `parameters` is None, and apply the treatment to gradients[i] in place."""

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
        """Make a step of gradient descent on the masters, then parameters[i] ← Q(masters[i]), and the figures.

        With g the treated gradient (`gradients` do not change) and m the master, and every product and sum rounded to
        float32: d = sign·g + decay·m; if there is a buffer, buffer ← momentum·buffer + kept·d, and then
        d ← d + momentum·buffer with `nesterov`, otherwise d ← buffer; m ← m + rate·d. If decay is 0, nothing is added.
        A layer without a gradient keeps its master and its buffer.

        Args:
            buffers, rates: as in `Update`.
        """


def in_two_passes(squared_norms_: Callable[..., None], add_: Callable[..., None]) -> Callable[..., None]:
    """Return `Kernels.accumulate_` of a back end that makes it of these two passes instead of one."""

    def accumulate_(
        sums: Sequence[Tensor | None], gradients: Sequence[Tensor | None], squared: Tensor, squared_sums: Tensor
    ) -> None:
        squared_norms_(gradients, squared)
        add_(sums, gradients, squared, squared_sums)

    return accumulate_


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
