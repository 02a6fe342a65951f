"""Counting for the CPU, compiled by Numba: one pass over the values, without a copy of them.

The range of the thresholds is divided into equal cells, and the values in each cell are counted. Only values that share
a cell with a threshold are compared with it. Rounding cannot break this: thresholds are rounded to the type of the
values and assigned to cells by the same non-decreasing arithmetic. A value in an earlier cell than a threshold is
therefore below the rounded threshold, by at least the distance of two numbers of its type, and so below the threshold
itself; likewise for a later cell.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.kernels.numba_.bits import number_at, ordered
from adapt.kernels.numba_.compiler import compiled, floats

_FEWEST_CELL_BITS, _MOST_CELL_BITS = 10, 15
_BLOCK = 1024
_MIXED = 1 << 30
"""The tally of a cell with a threshold starts at −_MIXED, so that its sign marks the cell."""


def count(values: NDArray[np.floating], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Implement `adapt.kernels.counting.count_at_most` for values [n] in memory."""
    # A cell for every four values: with fewer, more values share a threshold's; with more, tables outgrow the caches.
    bits = min(max((len(values) // 4).bit_length(), _FEWEST_CELL_BITS), _MOST_CELL_BITS)
    counts = np.empty(thresholds.size, np.int64)
    with np.errstate(over="ignore"):
        rounded = thresholds.ravel().astype(values.dtype)
    tallies = np.zeros(1 << bits, np.int32 if len(values) < _MIXED else np.int64)
    _count(values, thresholds.ravel(), rounded, tallies, counts)
    return counts.reshape(thresholds.shape)


@compiled
def extremes(address: int, numel: int) -> tuple[float, float]:
    """Return the smallest and the largest of at least one float32 number; one of them is NaN if a number is."""
    x = floats(address, numel)
    low = high = ordered(x[0])
    for i in range(numel):
        place = ordered(x[i])
        low = place if place < low else low
        high = place if place > high else high
    return np.float64(number_at(low)), np.float64(number_at(high))


@compiled
def _cell(value: Any, origin: Any, scale: Any, last: Any) -> np.int32:
    """Return the index of a value's cell, non-decreasing in the value; the end cells include all values beyond them.

    All four arguments have the values' type.
    """
    place = (value - origin) * scale
    place = place if place > 0 else origin - origin
    return np.int32(place if place < last else last)


@compiled
def _below(value: float, ascending: NDArray[np.float64], starts: NDArray[np.int32], cell: int) -> np.int64:
    """Return the number of thresholds below the value, which is in this cell; the last threshold, ∞, never is."""
    index = np.int64(starts[cell])
    while ascending[index] < value:
        index += 1
    return index


@compiled
def _reach(thresholds: NDArray[np.floating]) -> tuple[float, float]:
    """Return the smallest and the largest of the finite thresholds; (∞, −∞) if there is none."""
    first, last = np.inf, -np.inf
    for threshold in thresholds:
        if np.isfinite(threshold):
            first, last = min(first, threshold), max(last, threshold)
    return first, last


@compiled
def _sorted_by_cell(
    thresholds: NDArray[np.float64], cell_of: NDArray[np.int32], starts: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return the thresholds in ascending order, and their original indices: an insertion sort within each cell."""
    count = len(thresholds)
    ascending, order = np.empty(count + 1, np.float64), np.empty(count, np.int32)
    ascending[count] = np.inf
    ends = starts.copy()
    for k in range(count):
        threshold, cell = thresholds[k], cell_of[k]
        place = ends[cell]
        ends[cell] += 1
        while place > starts[cell] and ascending[place - 1] > threshold:
            ascending[place], order[place] = ascending[place - 1], order[place - 1]
            place -= 1
        ascending[place], order[place] = threshold, k
    return ascending, order


@compiled
def _count(
    values: NDArray[np.floating],
    thresholds: NDArray[np.float64],
    rounded: NDArray[np.floating],
    tallies: NDArray[np.signedinteger],
    counts: NDArray[np.int64],
) -> None:
    cells = len(tallies)
    kind = rounded.dtype.type
    first, end = _reach(rounded)
    origin, scale, last = kind(first), kind(cells / (end - first)), kind(cells - 1)
    if not (np.isfinite(scale) and scale > 0):
        # No two distinct finite thresholds: one cell holds everything, and every value is compared.
        origin, scale = kind(0), kind(0)

    cell_of = np.empty(len(thresholds), np.int32)
    starts = np.zeros(cells + 1, np.int32)
    for k in range(len(thresholds)):
        cell_of[k] = _cell(rounded[k], origin, scale, last)
        starts[cell_of[k] + 1] += 1
    for cell in range(cells):
        if starts[cell + 1] > 0:
            tallies[cell] = -_MIXED
        starts[cell + 1] += starts[cell]
    ascending, order = _sorted_by_cell(thresholds, cell_of, starts)

    # Three loops, so that the first is vectorised and the second has no branches; only the third mispredicts.
    at_index = np.zeros(len(ascending), np.int64)
    own_cell, shared = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    for begin in range(0, len(values), _BLOCK):
        block = values[begin : begin + _BLOCK]
        for i in range(len(block)):
            own_cell[i] = _cell(block[i], origin, scale, last)
        found = 0
        for i in range(len(block)):
            tally = tallies[own_cell[i]]
            tallies[own_cell[i]] = tally + 1
            shared[found] = i
            found += tally < 0
        for k in range(found):
            i = shared[k]
            at_index[_below(np.float64(block[i]), ascending, starts, own_cell[i])] += 1
    for cell in range(cells):
        if tallies[cell] >= 0:
            at_index[starts[cell]] += tallies[cell]

    # Equal thresholds are adjacent and no value lies between them, so each gets the same count.
    total = 0
    for index in range(len(order)):
        total += at_index[index]
        counts[order[index]] = total
