"""What the CPU does to the chunks of a network's tensors, compiled by Numba.

Addresses and numbers of elements come as integers, since a list of arrays would cost more to hand over than a small
network takes to round. A pass works on the rows `first` … `last` − 1 of the table of chunks: layer, first element,
number of elements.
"""

from typing import Any

import numpy as np

from adapt.kernels.numba_bits import times_sign_of
from adapt.kernels.numba_compiler import add, add_square, compiled, floats, prefetch
from adapt.kernels.numba_rounding import copy_chunk, round_chunk

TILE = 256
"""Elements that a pass takes through all that it does before the next, where that is much."""

_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def squared_norm(address: int, numel: int) -> float:
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
def _factor(squared: float, normalize: bool) -> Any:
    """What a gradient is multiplied with; 0 stands for one that is not finite."""
    if not np.isfinite(squared):
        return _ZERO
    if normalize and squared > 0.0:
        return np.float32(min(1.0 / np.sqrt(squared), np.float64(_LARGEST)))
    return _ONE


@compiled
def _add(total: int, gradient: int, numel: int) -> float:
    """sum ← sum + g for one chunk; ‖sum‖₂²."""
    s, g = floats(total, numel), floats(gradient, numel)
    squares = 0.0
    for i in range(numel):
        s[i] += g[i]
        squares = add_square(squares, np.float64(s[i]))
    return squares


@compiled
def _clear(address: int, numel: int) -> None:
    x = floats(address, numel)
    for i in range(numel):
        x[i] = _ZERO


@compiled
def _descend(gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any, rates: Any) -> None:
    """One chunk of plain descent."""
    rate, sign, decay = rates[0], rates[1], rates[2]
    g, m = floats(gradient, numel), floats(master, numel)
    for i in range(numel):
        d = sign * (_treated(g[i], m[i], factor, l1, l2) if factor != _ZERO else _ZERO)
        d = d + m[i] * decay if decay != _ZERO else d
        m[i] += d * rate


@compiled
def _descend_with_momentum(
    gradient: int, buffer: int, master: int, numel: int, factor: Any, l1: Any, l2: Any, rates: Any
) -> None:
    """One chunk of descent with momentum."""
    rate, sign, decay, momentum, kept, nesterov = rates[0], rates[1], rates[2], rates[3], rates[4], rates[5] != _ZERO
    g, b, m = floats(gradient, numel), floats(buffer, numel), floats(master, numel)
    for i in range(numel):
        d = sign * (_treated(g[i], m[i], factor, l1, l2) if factor != _ZERO else _ZERO)
        d = d + m[i] * decay if decay != _ZERO else d
        b[i] = b[i] * momentum + d * kept
        d = d + b[i] * momentum if nesterov else b[i]
        m[i] += d * rate


@compiled
def add_up(partial: Any, ends: Any, out: Any) -> None:
    """out[layer] ← the sum of the rows of its chunks, whose last are those before ends[layer], in their order."""
    row = 0
    for layer in range(len(ends)):
        out[layer] = 0.0
        while row < ends[layer]:
            for column in range(out.shape[1]):
                out[layer, column] += partial[row, column]
            row += 1


@compiled
def _end(first: int, last: int, partial: Any, ends: Any, out: Any) -> None:
    """Add up what a pass over all chunks has measured; of several passes nobody knows who is the last."""
    if last - first == len(partial):
        add_up(partial, ends, out)


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
    stochastic: bool,
    partial: Any,
    ends: Any,
    out: Any,
) -> None:
    """outputs ← Q(sources). Where `partial` is empty nothing is measured."""
    measure = len(partial) > 0
    for c in range(first, last):
        i, end = chunks[c, 0], chunks[c, 1] + chunks[c, 2]
        grid, key = grids[i], keys[i]
        nonzeros, absolute, squares = 0, 0.0, 0.0
        for start in range(chunks[c, 1], end, TILE):
            numel, source = min(TILE, end - start), sources[i] + 4 * start
            prefetch(source + 4 * TILE, 4 * numel)
            if measure:
                norms = _norms(source, numel)
                absolute, squares = absolute + norms[0], squares + norms[1]
            nonzeros += round_chunk(source, outputs[i] + 4 * start, numel, grid, key, offsets[i] + start, stochastic)
        if measure:
            partial[c, 0], partial[c, 1], partial[c, 2] = nonzeros, absolute, squares
    if measure:
        _end(first, last, partial, ends, out)


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
    stochastic: bool,
    partial: Any,
    ends: Any,
    out: Any,
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        parameter, master = parameters[i] + 4 * start, masters[i] + 4 * start
        copy_chunk(parameter, master, numel)
        partial[c, 1], partial[c, 2] = _norms(master, numel)
        partial[c, 0] = round_chunk(master, parameter, numel, grids[i], keys[i], offsets[i] + start, stochastic)
    _end(first, last, partial, ends, out)


@compiled
def _norm(first: int, last: int, chunks: Any, tensors: Any, partial: Any) -> None:
    """‖x‖₂² of each chunk; 0 where there is no tensor."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        partial[c, 0] = squared_norm(tensors[i] + 4 * start, numel) if tensors[i] else 0.0


@compiled
def _add_all(first: int, last: int, chunks: Any, sums: Any, gradients: Any, squared: Any, partial: Any) -> None:
    """sums += gradients where there is one and it is finite, and ‖sum‖₂² of each chunk; 0 where there is no sum."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        total = sums[i] + 4 * start
        if sums[i] and gradients[i] and np.isfinite(squared[i]):
            partial[c, 0] = _add(total, gradients[i] + 4 * start, numel)
        else:
            partial[c, 0] = squared_norm(total, numel) if sums[i] else 0.0


@compiled
def norm_pass(first: int, last: int, chunks: Any, tensors: Any, partial: Any, ends: Any, out: Any) -> None:
    _norm(first, last, chunks, tensors, partial)
    _end(first, last, partial, ends, out)


@compiled
def add_pass(
    first: int, last: int, chunks: Any, sums: Any, gradients: Any, squared: Any, partial: Any, ends: Any, out: Any
) -> None:
    _add_all(first, last, chunks, sums, gradients, squared, partial)
    _end(first, last, partial, ends, out)


@compiled
def accumulate_pass(chunks: Any, sums: Any, gradients: Any, ends: Any, squared: Any, squared_sums: Any) -> None:
    """Both passes, layer by layer, so that the second finds in the cache what the first has read."""
    norms, partial = np.empty((len(chunks), 1)), np.empty((len(chunks), 1))
    start = 0
    for layer in range(len(ends)):
        squared[layer] = 0.0
        _norm(start, ends[layer], chunks, gradients, norms)
        for c in range(start, ends[layer]):
            squared[layer] += norms[c, 0]
        _add_all(start, ends[layer], chunks, sums, gradients, squared, partial)
        start = ends[layer]
    add_up(partial, ends, squared_sums)


@compiled
def restore_pass(
    first: int,
    last: int,
    chunks: Any,
    parameters: Any,
    masters: Any,
    gradients: Any,
    squared: Any,
    l1: Any,
    l2: Any,
    normalize: bool,
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        master, gradient = masters[i] + 4 * start, gradients[i] + 4 * start
        if parameters[i]:
            copy_chunk(master, parameters[i] + 4 * start, numel)
        if gradients[i]:
            factor = _factor(squared[i], normalize)
            if factor != _ZERO:
                _treat(gradient, master, numel, factor, l1[i], l2[i])
            else:
                _clear(gradient, numel)


@compiled
def descend_pass(
    first: int,
    last: int,
    chunks: Any,
    parameters: Any,
    masters: Any,
    gradients: Any,
    buffers: Any,
    squared: Any,
    l1: Any,
    l2: Any,
    normalize: bool,
    rates: Any,
    grids: Any,
    keys: Any,
    offsets: Any,
    stochastic: bool,
    partial: Any,
    ends: Any,
    out: Any,
) -> None:
    for c in range(first, last):
        i, end = chunks[c, 0], chunks[c, 1] + chunks[c, 2]
        grid, key, rate = grids[i], keys[i], rates[i]
        factor = _factor(squared[i], normalize)
        nonzeros, absolute, squares = 0, 0.0, 0.0
        for start in range(chunks[c, 1], end, TILE):
            numel, ahead = min(TILE, end - start), 4 * (start + TILE)
            parameter, master = parameters[i] + 4 * start, masters[i] + 4 * start
            gradient, buffer = gradients[i] + 4 * start, buffers[i] + 4 * start
            prefetch(parameters[i] + ahead, 4 * numel)
            prefetch(masters[i] + ahead, 4 * numel)
            if gradients[i]:
                prefetch(gradients[i] + ahead, 4 * numel)
                if buffers[i]:
                    prefetch(buffers[i] + ahead, 4 * numel)
                    _descend_with_momentum(gradient, buffer, master, numel, factor, l1[i], l2[i], rate)
                else:
                    _descend(gradient, master, numel, factor, l1[i], l2[i], rate)
            norms = _norms(master, numel)
            absolute, squares = absolute + norms[0], squares + norms[1]
            nonzeros += round_chunk(master, parameter, numel, grid, key, offsets[i] + start, stochastic)
        partial[c, 0], partial[c, 1], partial[c, 2] = nonzeros, absolute, squares
    _end(first, last, partial, ends, out)
