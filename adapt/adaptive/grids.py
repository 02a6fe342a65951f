"""The grid of each parameter: its own format, or the one that block floating point derives from its values."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt import rounding
from adapt.distributed.sharding import extremes
from adapt.numerics import BlockFloat, FixedPoint, LayerFormat


class Grids:
    """The formats of some parameters, in the form that the kernels need.

    A fixed-point format has a fixed grid; the grid of block floating point follows the values.

    Args:
        formats: the format of each parameter.
        weights: the masters.

    Attributes:
        precisions: the fixed-point formats of the masters' latest rounding; None for float32.
        fraction_lengths: bits behind the binary point, int64 [parameters]; 0 in float32, and the smallest of a layer
            with a fraction length for every channel.
        table: a row of `adapt.rounding.grid` for each parameter, float32 [parameters, 4], with these fraction lengths.
    """

    def __init__(self, formats: Sequence[LayerFormat], weights: Sequence[Tensor]) -> None:
        self._formats = list(formats)
        self._in_blocks = any(isinstance(form, BlockFloat) for form in formats)
        self._set(self._resolved(range(len(formats)), weights))

    @property
    def is_fixed(self) -> bool:
        """Whether every parameter is in fixed point, so that no grid depends on the values."""
        return all(isinstance(form, FixedPoint) for form in self._formats)

    def fit(self, indices: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Fit block floating point to these tensors, the present or next values of the parameters' masters."""
        if self._in_blocks:
            fresh = dict(zip(indices, self._resolved(indices, tensors), strict=True))
            self._set([fresh.get(i, precision) for i, precision in enumerate(self.precisions)])

    def of(self, indices: Sequence[int], tensors: Sequence[Tensor]) -> NDArray[np.floating]:
        """Return the table's rows for tensors that are not the masters, in the formats of the parameters `indices`."""
        if not self._in_blocks:
            return self.table[indices]
        return _table(self._resolved(indices, tensors))

    def _resolved(self, indices: Sequence[int], tensors: Sequence[Tensor]) -> list[FixedPoint | None]:
        """Return the fixed-point formats that the formats of the parameters `indices` give these tensors."""
        formats = [self._formats[i] for i in indices]
        blocks = [(at, form) for at, form in enumerate(formats) if isinstance(form, BlockFloat)]
        found = extremes([tensors[at] for at, _ in blocks]) if blocks else []
        for (at, form), ends in zip(blocks, found, strict=True):
            formats[at] = form.precision(*ends)
        return formats  # type: ignore[return-value]

    def _set(self, precisions: Sequence[FixedPoint | None]) -> None:
        self.precisions = tuple(precisions)
        self.fraction_lengths = np.array([0 if p is None else p.fraction_length for p in precisions], np.int64)
        self.table = _table(precisions)


def _table(precisions: Sequence[FixedPoint | None]) -> NDArray[np.floating]:
    return np.stack([rounding.grid(None if precision is None else precision.widest) for precision in precisions])
