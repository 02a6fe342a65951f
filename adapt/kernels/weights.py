"""The passes over weights and gradients that every back end offers: all tensors of a network in one call."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.stream import OptionalTensors, Tensors


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

    def quantize_(self, sources: Tensors, outputs: Tensors, rounding: Rounding, figures: Tensor | None = None) -> None:
        """outputs[i] ← Q(sources[i]), and the figures unless they are None. An output may be its own source."""

    def store_(self, parameters: Tensors, masters: Tensors, rounding: Rounding, figures: Tensor) -> None:
        """masters[i] ← parameters[i], then parameters[i] ← Q(masters[i]), and the figures."""

    def squared_norms_(self, tensors: OptionalTensors, out: Tensor) -> None:
        """out[i] ← ‖tensors[i]‖₂², or NaN if the tensor is None. `out` is float64 [L] on the device."""

    def add_(self, sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
        """sums[i] += gradients[i] if squared[i] is finite, then squared_sums[i] ← ‖sums[i]‖₂².

        Without a gradient the sum does not change; without a sum `squared_sums` becomes 0.

        Args:
            sums, gradients: the tensors; None if there is none.
            squared: ‖gradients[i]‖₂², float64 [L] on the device; not read for missing gradients.
            squared_sums: the output, float64 [L] on the device.
        """

    def accumulate_(
        self, sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor
    ) -> None:
        """`squared_norms_` of the gradients into `squared`, then `add_`."""

    def restore_(
        self, parameters: Tensors | None, masters: Tensors, gradients: OptionalTensors, treatment: Treatment
    ) -> None:
        """parameters[i] ← masters[i], unless `parameters` is None, and apply the treatment to gradients[i] in place."""

    def descend_(
        self,
        parameters: Tensors,
        masters: Tensors,
        gradients: OptionalTensors,
        buffers: OptionalTensors,
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
