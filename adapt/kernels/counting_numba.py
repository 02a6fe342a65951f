"""Counting for the CPU, compiled by Numba: one pass over the values, without a copy of them.

The range of the thresholds is cut into equal cells, and the values of each cell are counted. Only those that share
their cell with a threshold are compared with it. Rounding cannot break this: values and thresholds find their cells by
the same arithmetic, which never decreases, so different cells are in the order of what lies in them.
"""

import numpy as np
from numpy.typing import NDArray

from adapt.kernels.numba_compiler import compiled

_FEWEST_CELL_BITS, _MOST_CELL_BITS = 10, 15
_BLOCK = 1024


def count(values: NDArray[np.floating], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """`adapt.kernels.counting.count_at_most` for values [n] in memory."""
    # A cell for every four values: with fewer, more values share theirs; with more, the tables outgrow the caches.
    bits = min(max((len(values) // 4).bit_length(), _FEWEST_CELL_BITS), _MOST_CELL_BITS)
    flat = thresholds.ravel()
    counts = np.empty(flat.shape, np.int64)
    _count(values, np.append(np.sort(flat), np.inf), flat, 1 << bits, counts)
    return counts.reshape(thresholds.shape)


@compiled
def _cell(value: float, origin: float, scale: float, last: float) -> np.int32:
    """Number of the cell, not decreasing in the value; the end cells hold what lies outside, infinities too."""
    place = (value - origin) * scale
    place = place if place > 0.0 else 0.0
    return np.int32(place if place < last else last)


@compiled
def _below(value: float, ascending: NDArray[np.float64], starts: NDArray[np.int32], cell: int) -> np.int64:
    """How many thresholds lie below the value, which is in this cell; the last threshold, ∞, never does."""
    index = np.int64(starts[cell])
    while ascending[index] < value:
        index += 1
    return index


@compiled
def _count(
    values: NDArray[np.floating],
    ascending: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    cells: int,
    counts: NDArray[np.int64],
) -> None:
    first, end = 0, len(ascending) - 1
    while first < end and not np.isfinite(ascending[first]):
        first += 1
    while end > first and not np.isfinite(ascending[end]):
        end -= 1
    origin, last = ascending[first], np.float64(cells - 1)
    scale = cells / (ascending[end] - origin)
    if not np.isfinite(scale):
        # No two finite thresholds apart: one cell holds everything, and every value is compared.
        origin, scale = 0.0, 0.0

    starts = np.zeros(cells + 1, np.int32)
    for threshold in ascending:
        starts[_cell(threshold, origin, scale, last) + 1] += 1
    mixed = starts[1:] > 0
    for cell in range(cells):
        starts[cell + 1] += starts[cell]

    # Loops of one task each: the first is vectorised, the second free of branches, and only the third mispredicts.
    in_cell = np.zeros(cells, np.int64)
    at_index = np.zeros(len(ascending), np.int64)
    own_cell, shared = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    for begin in range(0, len(values), _BLOCK):
        block = values[begin : begin + _BLOCK]
        for i in range(len(block)):
            own_cell[i] = _cell(np.float64(block[i]), origin, scale, last)
        found = 0
        for i in range(len(block)):
            in_cell[own_cell[i]] += 1
            shared[found] = i
            found += mixed[own_cell[i]]
        for k in range(found):
            i = shared[k]
            at_index[_below(np.float64(block[i]), ascending, starts, own_cell[i])] += 1
    for cell in range(cells):
        if not mixed[cell]:
            at_index[starts[cell]] += in_cell[cell]

    # A value is at most t exactly if no more thresholds lie below it than below t.
    for index in range(1, len(at_index)):
        at_index[index] += at_index[index - 1]
    for k in range(len(thresholds)):
        threshold = thresholds[k]
        counts[k] = at_index[_below(threshold, ascending, starts, _cell(threshold, origin, scale, last))]
