"""What the CPU does to the chunks of a network's tensors, compiled by Numba.

Addresses and numbers of elements come as integers, since a list of arrays would cost more to hand over than a small
network takes to round. A pass works on the rows `first` … `last` − 1 of the table of chunks: layer, first element,
number of elements.
"""

from typing import Any

import numpy as np

from adapt.kernels.numba_bits import times_sign_of
from adapt.kernels.numba_compiler import add, add_square, compiled, floats
from adapt.kernels.numba_rounding import copy_chunk, round_chunk, round_nearest, round_stochastic, uniform

_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def _store(parameter: int, master: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> np.int32:
    """master ← parameter and parameter ← Q(master) for one chunk; how many of the results are not zero."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    p, m = floats(parameter, numel), floats(master, numel)
    count = np.int32(0)
    if scale == _ZERO:
        for i in range(numel):
            m[i] = p[i]
            count = np.int32(count + (p[i] != _ZERO))
    elif stochastic:
        for i in range(numel):
            m[i] = p[i]
            r = round_stochastic(p[i], uniform(first, i, k0, k1), scale, step, low, high)
            p[i] = r
            count = np.int32(count + (r != _ZERO))
    else:
        for i in range(numel):
            m[i] = p[i]
            r = round_nearest(p[i], scale, step, low, high)
            p[i] = r
            count = np.int32(count + (r != _ZERO))
    return count


@compiled
def _squared_norm(address: int, numel: int) -> float:
    x = floats(address, numel)
    total = 0.0
    for i in range(numel):
        total = add_square(total, np.float64(x[i]))
    return total


@compiled
def _norms(address: int, numel: int) -> tuple[float, float]:
    """‖m‖₁ and ‖m‖₂² of one chunk."""
    m = floats(address, numel)
    absolute, squares = 0.0, 0.0
    for i in range(numel):
        wide = np.float64(m[i])
        absolute = add(absolute, abs(wide))
        squares = add_square(squares, wide)
    return absolute, squares


@compiled
def _treated(g: Any, m: Any, factor: Any, l1: Any, l2: Any) -> Any:
    """g·factor + (l1·sign(m) + l2·m), without the bracket where there is no penalty."""
    g = g * factor
    if l1 != _ZERO or l2 != _ZERO:
        g += (times_sign_of(l1, m) if m != _ZERO else _ZERO) + m * l2
    return g


@compiled
def _treat(gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any) -> None:
    g, m = floats(gradient, numel), floats(master, numel)
    for i in range(numel):
        g[i] = _treated(g[i], m[i], factor, l1, l2)


@compiled
def _accumulate_and_treat(total: int, gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any) -> float:
    """sum ← sum + g, then g treated, for one chunk; ‖sum‖₂²."""
    s = floats(total, numel)
    g, m = floats(gradient, numel), floats(master, numel)
    squares = 0.0
    for i in range(numel):
        s[i] += g[i]
        squares = add_square(squares, np.float64(s[i]))
        g[i] = _treated(g[i], m[i], factor, l1, l2)
    return squares


@compiled
def _clear(address: int, numel: int) -> None:
    x = floats(address, numel)
    for i in range(numel):
        x[i] = _ZERO


@compiled
def quantize_pass(
    first: int,
    last: int,
    chunks: Any,
    sources: Any,
    outputs: Any,
    grids: Any,
    keys: Any,
    offsets: Any,
    counts: Any,
    stochastic: bool,
) -> None:
    """outputs ← Q(sources), and how many results of each chunk are not zero."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        source, output = sources[i] + 4 * start, outputs[i] + 4 * start
        counts[c] = round_chunk(source, output, numel, grids[i], keys[i], offsets[i] + start, stochastic)


@compiled
def store_pass(
    first: int,
    last: int,
    chunks: Any,
    parameters: Any,
    masters: Any,
    grids: Any,
    keys: Any,
    offsets: Any,
    counts: Any,
    stochastic: bool,
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        parameter, master = parameters[i] + 4 * start, masters[i] + 4 * start
        counts[c] = _store(parameter, master, numel, grids[i], keys[i], offsets[i] + start, stochastic)


@compiled
def norm_pass(first: int, last: int, chunks: Any, tensors: Any, partial: Any) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        partial[c] = _squared_norm(tensors[i] + 4 * start, numel)


@compiled
def restore_pass(
    first: int,
    last: int,
    chunks: Any,
    parameters: Any,
    masters: Any,
    gradients: Any,
    sums: Any,
    squared: Any,
    l1: Any,
    l2: Any,
    partial: Any,
    normalize: bool,
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        master, gradient, total = masters[i] + 4 * start, gradients[i] + 4 * start, sums[i] + 4 * start
        if parameters[i]:
            copy_chunk(master, parameters[i] + 4 * start, numel)
        partial[c, 1], partial[c, 2] = _norms(master, numel)
        use = gradients[i] != 0 and np.isfinite(squared[i])
        factor = _ONE
        if normalize and squared[i] > 0.0:
            factor = np.float32(min(1.0 / np.sqrt(squared[i]), np.float64(_LARGEST)))
        if use and sums[i]:
            partial[c, 0] = _accumulate_and_treat(total, gradient, master, numel, factor, l1[i], l2[i])
        else:
            partial[c, 0] = _squared_norm(total, numel) if sums[i] else 0.0
            if use:
                _treat(gradient, master, numel, factor, l1[i], l2[i])
            elif gradients[i]:
                _clear(gradient, numel)
