"""Means over positions: the order in which torch sums them on this processor, as float32 rounds every partial sum."""

from collections.abc import Callable
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

_ACCUMULATORS = 4
_BLOCK = 16
"""Terms after which torch begins a new partial sum."""


@cache
def summation_order(count: int) -> NDArray[np.int64] | None:
    """Return in which order torch sums `count` neighbouring float32 numbers to take their mean.

    It adds vectors of neighbours into four accumulators, which begin a new partial sum after 16 additions; then the
    partial sums, the accumulators, and the lanes of the one vector that is left. How long the vectors are depends on
    the processor, so several lengths are tried. None if no length gives torch's bits.

    Returns:
        Positions, [steps, blocks, accumulators, lanes], to be summed one after the other along the first dimension,
        then along the next, and so on. The position `count` stands for a zero.
    """
    x = torch.randn(64, count, generator=torch.Generator().manual_seed(0))
    expected = x.mean(1)
    for lanes in (16, 8, 4, 1):
        order = _vectorised(count, lanes)
        if torch.equal(sum_in_order(F.pad(x, (0, 1))[:, order], order.ndim, torch.add) / count, expected):
            return order
    return None


def sum_in_order(terms: Any, levels: int, add: Callable[[Any, Any], Any]) -> Any:
    """Return sums along the first of the last dimensions, one term after the other, then along the next, and so on.

    Args:
        terms: a tensor, or something else that has `unbind`.
        levels: how many dimensions are summed.
        add: the sum of two terms.
    """
    for level in range(levels, 0, -1):
        terms = reduce(add, terms.unbind(-level))
    return terms


def _vectorised(count: int, lanes: int) -> NDArray[np.int64]:
    """`summation_order` for vectors of a certain length."""
    vectors, single = divmod(count, lanes)
    rows, left = divmod(vectors, _ACCUMULATORS)
    # The vectors of each partial sum; those that are left over go to the first accumulator.
    starts = range(0, rows, _BLOCK)
    blocks = [
        np.arange(start, min(start + _BLOCK, rows))[:, None] * _ACCUMULATORS + np.arange(_ACCUMULATORS)
        for start in starts
    ]
    blocks += [np.array([[vectors - left + i]]) for i in range(left)]
    steps = max((len(block) for block in blocks), default=1)
    order = np.full((steps, max(len(blocks), 1), _ACCUMULATORS if rows else 1, single + lanes), count)
    for index, block in enumerate(blocks):
        order[: len(block), index, : block.shape[1], single:] = block[:, :, None] * lanes + np.arange(lanes)
    # Positions left over from whole vectors are added up first, then the lanes.
    order[0, 0, 0, :single] = np.arange(vectors * lanes, count)
    return order if vectors else order[..., :single]
