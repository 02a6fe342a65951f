"""Warnings of layers whose master weights have outgrown the range of their format."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from adapt.numerics import LayerFormat

_MANY = 0.25
"""Warn above this share of saturated master weights: even the best two-bit range cuts off less."""


class SaturationWatch:
    """Finds layers many of whose master weights stay outside their format's range. Its looks wait on the device.

    Args:
        names: the layers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._waiting: list[Tensor] = []
        self._latest = np.zeros(len(names))
        self._named = np.zeros(len(names), bool)

    def look(self, shares: Tensor) -> None:
        """Add the present share of each layer's master weights outside its range, float64 [layers]."""
        self._waiting.append(shares)

    def warnings(self, formats: Sequence[LayerFormat]) -> Iterator[str]:
        """Yield a warning of each layer that was saturated at two successive looks, once; waits for the device."""
        looks, self._waiting = self._waiting, []
        for share in torch.stack(looks).cpu().numpy() if looks else ():
            stays = (share > _MANY) & (self._latest > _MANY)
            for layer in np.flatnonzero(stays & ~self._named).tolist():
                self._named[layer] = True
                yield (
                    f"{share[layer]:.0%} of the master weights of {self._names[layer]} stay outside the range of "
                    f"their format {formats[layer]}, so they saturate: give the layer more bits before the "
                    "binary point (a shorter fraction, or a longer word), or a smaller learning rate"
                )
            self._latest = share
