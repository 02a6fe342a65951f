"""What the CPU does to the chunks of a network's tensors, compiled by Numba.

Addresses and numbers of elements come as integers, since a list of arrays would cost more to hand over than a small
network takes to round. A pass works on the rows `first` … `last` − 1 of the table of chunks: layer, first element,
number of elements.
"""

from typing import Any

import numpy as np

from adapt.kernels.numba_bits import times_sign_of
from adapt.kernels.numba_compiler import add, add_square, compiled, floats
from adapt.kernels.numba_rounding import copy_chunk, round_chunk

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
    measure: bool,
) -> None:
    """outputs ← Q(sources). Each chunk's figures go into `partial`; without `measure` no norms."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        source, output = sources[i] + 4 * start, outputs[i] + 4 * start
        if measure:
            partial[c, 1], partial[c, 2] = _norms(source, numel)
        partial[c, 0] = round_chunk(source, output, numel, grids[i], keys[i], offsets[i] + start, stochastic)


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
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        parameter, master = parameters[i] + 4 * start, masters[i] + 4 * start
        copy_chunk(parameter, master, numel)
        partial[c, 1], partial[c, 2] = _norms(master, numel)
        partial[c, 0] = round_chunk(master, parameter, numel, grids[i], keys[i], offsets[i] + start, stochastic)


@compiled
def norm_pass(first: int, last: int, chunks: Any, tensors: Any, partial: Any) -> None:
    """‖x‖₂² of each chunk; 0 where there is no tensor."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        partial[c] = squared_norm(tensors[i] + 4 * start, numel) if tensors[i] else 0.0


@compiled
def add_pass(first: int, last: int, chunks: Any, sums: Any, gradients: Any, squared: Any, partial: Any) -> None:
    """‖sum‖₂² of each chunk too; 0 where there is no sum."""
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        total = sums[i] + 4 * start
        if sums[i] and gradients[i] and np.isfinite(squared[i]):
            partial[c] = _add(total, gradients[i] + 4 * start, numel)
        else:
            partial[c] = squared_norm(total, numel) if sums[i] else 0.0


@compiled
def accumulate_pass(
    first: int, last: int, chunks: Any, sums: Any, gradients: Any, squared: Any, norms: Any, partial: Any
) -> None:
    """`norm_pass` and `add_pass` layer by layer, so that the second finds in the cache what the first has read.

    For all chunks of a network: `squared` gets the norms of whole layers.
    """
    start = first
    while start < last:
        layer, end = chunks[start, 0], start
        while end < last and chunks[end, 0] == layer:
            end += 1
        norm_pass(start, end, chunks, gradients, norms)
        squared[layer] = norms[start:end].sum()
        add_pass(start, end, chunks, sums, gradients, squared, partial)
        start = end


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
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        parameter, master, gradient = parameters[i] + 4 * start, masters[i] + 4 * start, gradients[i] + 4 * start
        if gradients[i]:
            factor = _factor(squared[i], normalize)
            if buffers[i]:
                buffer = buffers[i] + 4 * start
                _descend_with_momentum(gradient, buffer, master, numel, factor, l1[i], l2[i], rates[i])
            else:
                _descend(gradient, master, numel, factor, l1[i], l2[i], rates[i])
        partial[c, 1], partial[c, 2] = _norms(master, numel)
        partial[c, 0] = round_chunk(master, parameter, numel, grids[i], keys[i], offsets[i] + start, stochastic)
