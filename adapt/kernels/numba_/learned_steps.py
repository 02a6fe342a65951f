"""The passes of quantisers with a learned step for the CPU, compiled by Numba: tensors are read once in each direction.

`adapt.kernels.learned_steps.LearnedKernels` documents them. Backward repeats the arithmetic of forward instead of
reading its results, because memory is the bottleneck. Quotients of polynomials, fitted on [−1/2, 1/2], replace sin,
tanh and artanh in the scalings; δ times their error is below the rounding error of float32.

torch's own learnable fake-quantise kernels do not scale gradients, and took 36 times (forward) and 8 times (backward)
as long for 2 million elements on one thread.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from adapt.kernels.learned_steps import SCALINGS, SUMS
from adapt.kernels.numba_.chunks import address_of, chunks_of, run
from adapt.kernels.numba_.compiler import add, compiled, floats

BLOCK = 1024
_ZERO, _ONE = np.float32(0), np.float32(1)
_PBGS, _EWGS, _ACOS, _TANH, _INVTANH = (SCALINGS.index(name) for name in ("pbgs", "ewgs", "acos", "tanh", "invtanh"))
SIGNED = (_EWGS, _TANH, _INVTANH)
"""The scalings that multiply δ·f(u) by the gradient's sign."""

# Coefficients of u·P(u²)/Q(u²). Errors: 3e-7 for ½·sin(πu), 6e-6 for ½·tanh(4u), 5e-5 for ½·artanh(1.9u)/artanh(0.95).
_SIN = tuple(map(np.float32, (1.57079099, -2.58357163, 1.27094331, -0.277303827)))
_TANH_ABOVE = tuple(map(np.float32, (1.99986292, 2.20691262, -0.602526799)))
_TANH_BELOW = np.float32(6.43107769)
_INVERSE_ABOVE = tuple(map(np.float32, (0.519004408, -2.16654836, 1.59539688)))
_INVERSE_BELOW = tuple(map(np.float32, (-5.35408793, 6.64973708)))


@compiled
def _clip(v: Any, low: Any, high: Any) -> Any:
    # NaN fails both comparisons and so stays NaN.
    v = high if v > high else v
    return low if v < low else v


@compiled
def _round(v: Any, offset: Any) -> Any:
    return np.rint(v - offset) + offset


@compiled
def round_block(source: int, output: int, numel: int, row: Any) -> None:
    """output ← Q(source), with one format for all elements."""
    inverse, step, low, high, offset = row[0], row[1], row[2], row[3], row[4]
    x, y = floats(source, numel), floats(output, numel)
    if inverse == _ZERO:
        for i in range(numel):
            y[i] = x[i]
    elif source == output:
        # In place, the same loop over a single array, because loops over overlapping arrays are not vectorised.
        for i in range(numel):
            y[i] = _round(_clip(y[i] * inverse, low, high), offset) * step
    else:
        for i in range(numel):
            y[i] = _round(_clip(x[i] * inverse, low, high), offset) * step


@compiled
def round_columns(source: int, output: int, numel: int, columns: Any, row: int) -> None:
    """output ← Q(source), with the format columns[:, row + i] for element i."""
    x, y = floats(source, numel), floats(output, numel)
    for i in range(numel):
        inverse, low, high, offset = columns[0, row + i], columns[2, row + i], columns[3, row + i], columns[4, row + i]
        rounded = _round(_clip(x[i] * inverse, low, high), offset) * columns[1, row + i]
        y[i] = x[i] if inverse == _ZERO else rounded


@compiled
def _forward_pass(first: int, last: int, chunks: Any, source: int, output: int, rows: Any, site: int) -> None:
    for c in range(first, last):
        start, numel = chunks[c, 1], chunks[c, 2]
        round_block(source + 4 * start, output + 4 * start, numel, rows[site])


@compiled
def _bend(u: Any, scaling: int, numel: int) -> None:
    """u ← f(u), with the f of the scaling."""
    if scaling == _PBGS:
        for i in range(numel):
            u[i] = abs(u[i])
    elif scaling == _ACOS:
        for i in range(numel):
            t = u[i] * u[i]
            u[i] *= _SIN[0] + t * (_SIN[1] + t * (_SIN[2] + t * _SIN[3]))
    elif scaling == _TANH:
        for i in range(numel):
            t = u[i] * u[i]
            above = _TANH_ABOVE[0] + t * (_TANH_ABOVE[1] + t * _TANH_ABOVE[2])
            u[i] = u[i] * above / (_ONE + t * _TANH_BELOW)
    elif scaling == _INVTANH:
        for i in range(numel):
            t = u[i] * u[i]
            above = _INVERSE_ABOVE[0] + t * (_INVERSE_ABOVE[1] + t * _INVERSE_ABOVE[2])
            u[i] = u[i] * above / (_ONE + t * (_INVERSE_BELOW[0] + t * _INVERSE_BELOW[1]))


@compiled
def backward_block(
    g: Any, x: Any, y: Any, f: Any, numel: int, row: Any, signed: bool, scaling: int, delta: Any, sums: Any, c: int
) -> None:
    """y ← the gradient with respect to x, with one format, and sums[c] += the four sums; f is scratch memory."""
    inverse, low, high, offset = row[0], row[2], row[3], row[4]
    step, above, below, energy = _ZERO, _ZERO, _ZERO, _ZERO
    if inverse == _ZERO:
        for i in range(numel):
            energy = add(energy, g[i] * g[i])
            y[i] = g[i]
        sums[c, 3] += energy
        return
    if scaling:
        for i in range(numel):
            v = _clip(x[i] * inverse, low, high)
            f[i] = v - _round(v, offset)
        _bend(f, scaling, numel)
    for i in range(numel):
        scaled, gradient = x[i] * inverse, g[i]
        v = _clip(scaled, low, high)
        through = gradient
        if scaling:
            through += delta * f[i] * (abs(gradient) if signed else gradient)
        step = add(step, gradient * _round(v, offset) - through * v)
        above = add(above, through if scaled > high else _ZERO)
        below = add(below, through if scaled < low else _ZERO)
        energy = add(energy, gradient * gradient)
        y[i] = through if (scaled >= low) & (scaled <= high) else _ZERO
    sums[c, 0] += step
    sums[c, 1] += above
    sums[c, 2] += below
    sums[c, 3] += energy


@compiled
def backward_columns(
    g: Any, x: Any, f: Any, numel: int, columns: Any, row: int, signed: bool, scaling: int, delta: Any, sums: Any
) -> None:
    """g ← the gradient with respect to x, and sums[row + i] += the four sums, with format columns[:, row + i] for i."""
    for i in range(numel):
        low, high, offset = columns[2, row + i], columns[3, row + i], columns[4, row + i]
        v = _clip(x[i] * columns[0, row + i], low, high)
        f[i] = v - _round(v, offset)
    if scaling:
        _bend(f, scaling, numel)
    for i in range(numel):
        inverse, low, high, offset = columns[0, row + i], columns[2, row + i], columns[3, row + i], columns[4, row + i]
        scaled, gradient = x[i] * inverse, g[i]
        sums[row + i, 3] += gradient * gradient
        if inverse == _ZERO:
            continue
        v = _clip(scaled, low, high)
        through = gradient
        if scaling:
            through += delta * f[i] * (abs(gradient) if signed else gradient)
        sums[row + i, 0] += gradient * _round(v, offset) - through * v
        sums[row + i, 1] += through if scaled > high else _ZERO
        sums[row + i, 2] += through if scaled < low else _ZERO
        g[i] = through if (scaled >= low) & (scaled <= high) else _ZERO


@compiled
def _backward_pass(
    first: int,
    last: int,
    chunks: Any,
    gradient: int,
    source: int,
    output: int,
    rows: Any,
    site: int,
    signed: bool,
    scaling: int,
    delta: Any,
    sums: Any,
) -> None:
    f, held = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    row = rows[site]
    for c in range(first, last):
        sums[c] = 0.0
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], BLOCK):
            numel = min(BLOCK, chunks[c, 1] + chunks[c, 2] - start)
            g = floats(gradient + 4 * start, numel)
            x = floats(source + 4 * start, numel)
            y = floats(output + 4 * start, numel)
            if gradient == output:
                # Through a buffer in the cache, because loops over overlapping arrays are not vectorised.
                backward_block(g, x, held, f, numel, row, signed, scaling, delta, sums, c)
                for i in range(numel):
                    y[i] = held[i]
            else:
                backward_block(g, x, y, f, numel, row, signed, scaling, delta, sums, c)


def forward(source: Tensor, output: Tensor, rows: Tensor, site: int) -> None:
    if source.dtype != torch.float32 or output.dtype != torch.float32:
        # Takes two more copies, but is still several times as fast as separate torch operations.
        held = source.to(torch.float32, copy=True)
        forward(held, held, rows, site)
        output.copy_(held)
        return
    run(_forward_pass, chunks_of((source.numel(),)), address_of(source), address_of(output), rows.numpy(), site)
    increment_version(output)


def backward(
    gradient: Tensor,
    source: Tensor,
    output: Tensor,
    rows: Tensor,
    site: int,
    sums: Tensor,
    *,
    scaling: int,
    delta: float,
) -> None:
    if not gradient.dtype == source.dtype == output.dtype == torch.float32:
        held = gradient.to(torch.float32, copy=True)
        backward(held, source.to(torch.float32), held, rows, site, sums, scaling=scaling, delta=delta)
        output.copy_(held)
        return
    chunks = chunks_of((source.numel(),))
    partial = np.empty((len(chunks.table), SUMS))
    addresses = address_of(gradient), address_of(source), address_of(output)
    run(_backward_pass, chunks, *addresses, rows.numpy(), site, scaling in SIGNED, scaling, np.float32(delta), partial)
    sums.numpy()[site] += partial.sum(axis=0)
    increment_version(output)
