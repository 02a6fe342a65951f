"""Norms and sums of a network's tensors on the CPU, compiled by Numba: first of chunks, then of whole layers.

For the arguments see `adapt.kernels.numba_.weights_device`. Every sum is taken in float64 in the order of the chunks.
"""

from typing import Any

import numpy as np

from adapt.kernels.numba_.compiler import add, add_square, compiled, floats


@compiled
def _squared_norm(address: int, numel: int) -> float:
    x = floats(address, numel)
    total = 0.0
    for i in range(numel):
        total = add_square(total, np.float64(x[i]))
    return total


@compiled
def norms(address: int, numel: int) -> tuple[float, float]:
    """Return ‖m‖₁ and ‖m‖₂² of one chunk."""
    m = floats(address, numel)
    absolute, squares = 0.0, 0.0
    for i in range(numel):
        wide = np.float64(m[i])
        absolute = add(absolute, abs(wide))
        squares = add_square(squares, wide)
    return absolute, squares


@compiled
def _add(total: int, gradient: int, numel: int) -> float:
    """total += gradient for one chunk; return ‖total‖₂²."""
    s, g = floats(total, numel), floats(gradient, numel)
    squares = 0.0
    for i in range(numel):
        s[i] += g[i]
        squares = add_square(squares, np.float64(s[i]))
    return squares


@compiled
def add_up(partial: Any, ends: Any, out: Any) -> None:
    """out[layer] ← the sum, in order, of the rows of its chunks, the last of which is ends[layer] − 1."""
    row = 0
    for layer in range(len(ends)):
        out[layer] = 0.0
        while row < ends[layer]:
            for column in range(out.shape[1]):
                out[layer, column] += partial[row, column]
            row += 1


@compiled
def end_of_pass(first: int, last: int, partial: Any, ends: Any, out: Any) -> None:
    """Add up the figures of a pass if it ran over all chunks; otherwise the caller does so after the last thread."""
    if last - first == len(partial):
        add_up(partial, ends, out)


@compiled
def _norm(first: int, last: int, chunks: Any, tensors: Any, partial: Any) -> None:
    """partial ← ‖x‖₂² of each chunk; 0 for a missing tensor."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        partial[c, 0] = _squared_norm(tensors[i] + 4 * start, numel) if tensors[i] else 0.0


@compiled
def _add_all(first: int, last: int, chunks: Any, sums: Any, gradients: Any, squared: Any, partial: Any) -> None:
    """sums += gradients that are finite; partial ← ‖sum‖₂² of each chunk, 0 for a missing sum."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        total = sums[i] + 4 * start
        if sums[i] and gradients[i] and np.isfinite(squared[i]):
            partial[c, 0] = _add(total, gradients[i] + 4 * start, numel)
        else:
            partial[c, 0] = _squared_norm(total, numel) if sums[i] else 0.0


@compiled
def norm_pass(first: int, last: int, chunks: Any, tensors: Any, partial: Any, ends: Any, out: Any) -> None:
    _norm(first, last, chunks, tensors, partial)
    end_of_pass(first, last, partial, ends, out)


@compiled
def add_pass(
    first: int, last: int, chunks: Any, sums: Any, gradients: Any, squared: Any, partial: Any, ends: Any, out: Any
) -> None:
    _add_all(first, last, chunks, sums, gradients, squared, partial)
    end_of_pass(first, last, partial, ends, out)


@compiled
def accumulate_pass(chunks: Any, sums: Any, gradients: Any, ends: Any, squared: Any, squared_sums: Any) -> None:
    """Run both passes layer by layer, so that the second finds the gradients in the cache."""
    own, partial = np.empty((len(chunks), 1)), np.empty((len(chunks), 1))
    start = 0
    for layer in range(len(ends)):
        squared[layer] = 0.0
        _norm(start, ends[layer], chunks, gradients, own)
        for c in range(start, ends[layer]):
            squared[layer] += own[c, 0]
        _add_all(start, ends[layer], chunks, sums, gradients, squared, partial)
        start = ends[layer]
    add_up(partial, ends, squared_sums)
