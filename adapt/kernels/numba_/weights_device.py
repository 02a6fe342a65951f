"""The passes over the chunks of a network's tensors on the CPU, compiled by Numba.

Addresses and numbers of elements are integers, because passing a list of arrays would take longer than rounding a small
network. A pass works on the rows `first` … `last` − 1 of the table of chunks: layer, first element, number of elements.
"""

from typing import Any

import numpy as np

from adapt.kernels.numba_.bits import times_sign_of
from adapt.kernels.numba_.compiler import compiled, floats, prefetch
from adapt.kernels.numba_.rounding import copy_chunk, round_chunk
from adapt.kernels.numba_.sums import end_of_pass, norms

TILE = 256
"""The number of elements that a pass with much arithmetic finishes before it continues."""

_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def _treated(g: Any, m: Any, factor: Any, l1: Any, l2: Any) -> Any:
    """Return g·factor + (l1·sign(m) + l2·m), without the term in parentheses if there is no penalty."""
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
    """Return the factor of a gradient; 0 for one that is not finite."""
    if not np.isfinite(squared):
        return _ZERO
    if normalize and squared > 0.0:
        return np.float32(min(1.0 / np.sqrt(squared), np.float64(_LARGEST)))
    return _ONE


@compiled
def _clear(address: int, numel: int) -> None:
    x = floats(address, numel)
    for i in range(numel):
        x[i] = _ZERO


@compiled
def _descend(gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any, rates: Any) -> None:
    """Make a step of plain descent on one chunk."""
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
    """Make a step of descent with momentum on one chunk."""
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
    ends: Any,
    out: Any,
) -> None:
    """outputs ← Q(sources). If `partial` is empty, nothing is measured."""
    measure = len(partial) > 0
    for c in range(first, last):
        i, end = chunks[c, 0], chunks[c, 1] + chunks[c, 2]
        grid, key = grids[i], keys[i]
        nonzeros, absolute, squares = 0, 0.0, 0.0
        for start in range(chunks[c, 1], end, TILE):
            numel, source = min(TILE, end - start), sources[i] + 4 * start
            prefetch(source + 4 * TILE, 4 * numel)
            if measure:
                one, two = norms(source, numel)
                absolute, squares = absolute + one, squares + two
            nonzeros += round_chunk(source, outputs[i] + 4 * start, numel, grid, key, offsets[i] + start, stochastic)
        if measure:
            partial[c, 0], partial[c, 1], partial[c, 2] = nonzeros, absolute, squares
    if measure:
        end_of_pass(first, last, partial, ends, out)


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
        partial[c, 1], partial[c, 2] = norms(master, numel)
        partial[c, 0] = round_chunk(master, parameter, numel, grids[i], keys[i], offsets[i] + start, stochastic)
    end_of_pass(first, last, partial, ends, out)


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
            one, two = norms(master, numel)
            absolute, squares = absolute + one, squares + two
            nonzeros += round_chunk(master, parameter, numel, grid, key, offsets[i] + start, stochastic)
        partial[c, 0], partial[c, 1], partial[c, 2] = nonzeros, absolute, squares
    end_of_pass(first, last, partial, ends, out)
