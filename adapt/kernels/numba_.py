"""The kernels for the CPU, compiled by Numba: one call per pass over all tensors, whatever their number.

`adapt.kernels.Kernels` says what each function does. The tensors are cut into chunks that fit the first-level cache;
a pass takes one chunk at a time through all that it does, so memory is read and written once, and large passes share
the chunks among `torch.get_num_threads()` threads. Sums are kept per chunk and added in order of the chunks, so no
result depends on the number of threads.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from adapt.kernels.stream import FIRST_MULTIPLIER, SECOND_MULTIPLIER, UNIFORM_STEP, require_layout

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

CHUNK = 4096
CHUNKS_PER_THREAD = 64
"""Waking a thread costs some 20 µs; this many chunks take about as long."""

_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


def _compiled(function: Callable[..., Any], *, reassociate: bool = False) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where a folder can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"} if reassociate else False}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    """The float32 array that starts at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _uniform(context: Any, first: Any, i: Any, k0: Any, k1: Any) -> Any:
    """The stream's draw for element first + i. Written in 32-bit instructions: Numba's own uint32 widens to 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, i, k0, k1 = arguments
        bits, real = ir.IntType(32), ir.FloatType()

        def fold(x: Any, shift: int) -> Any:
            return builder.xor(x, builder.lshr(x, bits(shift)))

        x = fold(builder.xor(builder.add(first, builder.trunc(i, bits)), k0), 16)
        x = fold(builder.mul(x, bits(FIRST_MULTIPLIER)), 15)
        x = fold(builder.mul(builder.xor(x, k1), bits(SECOND_MULTIPLIER)), 16)
        return builder.fmul(builder.sitofp(builder.lshr(x, bits(8)), real), real(UNIFORM_STEP))

    return types.float32(types.uint32, types.int64, types.uint32, types.uint32), generate


def _add(total: float, term: float) -> float:
    return total + term


# A sum whose order the compiler may choose, which it needs to use vector registers. Nothing else may be reordered.
_add = _compiled(_add, reassociate=True)


@_compiled
def _clamped(r: Any, step: Any, low: Any, high: Any) -> Any:
    # Two comparisons that NaN fails, so that it stays.
    r = high if r > high else r
    r = low if r < low else r
    return r * step


@_compiled
def _nearest(x: Any, scale: Any, step: Any, low: Any, high: Any) -> Any:
    return _clamped(np.rint(x * scale), step, low, high)


@_compiled
def _stochastic(x: Any, u: Any, scale: Any, step: Any, low: Any, high: Any) -> Any:
    v = x * scale
    floor = np.floor(v)
    return _clamped(floor + _ONE if u < v - floor else floor, step, low, high)


@_compiled
def _copy(source: int, output: int, numel: int) -> None:
    s, o = numba.carray(_pointer(source), numel), numba.carray(_pointer(output), numel)
    for i in range(numel):
        o[i] = s[i]


@_compiled
def _round(source: int, output: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> None:
    """output ← Q(source) for one chunk."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    s, o = numba.carray(_pointer(source), numel), numba.carray(_pointer(output), numel)
    if scale == _ZERO:
        if source != output:
            _copy(source, output, numel)
    elif source != output:
        if stochastic:
            for i in range(numel):
                o[i] = _stochastic(s[i], _uniform(first, i, k0, k1), scale, step, low, high)
        else:
            for i in range(numel):
                o[i] = _nearest(s[i], scale, step, low, high)
    # In place, the same loops over one array: over two that overlap they would not be vectorised.
    elif stochastic:
        for i in range(numel):
            o[i] = _stochastic(o[i], _uniform(first, i, k0, k1), scale, step, low, high)
    else:
        for i in range(numel):
            o[i] = _nearest(o[i], scale, step, low, high)


@_compiled
def _store(parameter: int, master: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> np.int32:
    """master ← parameter and parameter ← Q(master) for one chunk; how many of the results are not zero."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    p, m = numba.carray(_pointer(parameter), numel), numba.carray(_pointer(master), numel)
    count = np.int32(0)
    if scale == _ZERO:
        for i in range(numel):
            m[i] = p[i]
            count = np.int32(count + (p[i] != _ZERO))
    elif stochastic:
        for i in range(numel):
            m[i] = p[i]
            r = _stochastic(p[i], _uniform(first, i, k0, k1), scale, step, low, high)
            p[i] = r
            count = np.int32(count + (r != _ZERO))
    else:
        for i in range(numel):
            m[i] = p[i]
            r = _nearest(p[i], scale, step, low, high)
            p[i] = r
            count = np.int32(count + (r != _ZERO))
    return count


@_compiled
def _squared_norm(address: int, numel: int) -> float:
    x = numba.carray(_pointer(address), numel)
    total = 0.0
    for i in range(numel):
        total = _add(total, np.float64(x[i]) * np.float64(x[i]))
    return total


@_compiled
def _restore(parameter: int, master: int, numel: int) -> tuple[float, float]:
    """parameter ← master for one chunk; its ‖m‖₁ and ‖m‖₂²."""
    p, m = numba.carray(_pointer(parameter), numel), numba.carray(_pointer(master), numel)
    absolute, squares = 0.0, 0.0
    for i in range(numel):
        p[i] = m[i]
        wide = np.float64(m[i])
        absolute = _add(absolute, abs(wide))
        squares = _add(squares, wide * wide)
    return absolute, squares


@_compiled
def _treated(g: Any, m: Any, factor: Any, l1: Any, l2: Any) -> Any:
    """g·factor + (l1·sign(m) + l2·m), without the bracket where there is no penalty."""
    g = g * factor
    if l1 != _ZERO or l2 != _ZERO:
        g += (_ONE if m > _ZERO else (-_ONE if m < _ZERO else _ZERO)) * l1 + m * l2
    return g


@_compiled
def _treat(gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any) -> None:
    g, m = numba.carray(_pointer(gradient), numel), numba.carray(_pointer(master), numel)
    for i in range(numel):
        g[i] = _treated(g[i], m[i], factor, l1, l2)


@_compiled
def _accumulate_and_treat(total: int, gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any) -> float:
    """sum ← sum + g, then g treated, for one chunk; ‖sum‖₂²."""
    s = numba.carray(_pointer(total), numel)
    g, m = numba.carray(_pointer(gradient), numel), numba.carray(_pointer(master), numel)
    squares = 0.0
    for i in range(numel):
        s[i] += g[i]
        squares = _add(squares, np.float64(s[i]) * np.float64(s[i]))
        g[i] = _treated(g[i], m[i], factor, l1, l2)
    return squares


@_compiled
def _clear(address: int, numel: int) -> None:
    x = numba.carray(_pointer(address), numel)
    for i in range(numel):
        x[i] = _ZERO


@_compiled
def _quantize_pass(
    first: int,
    last: int,
    chunks: Any,
    sources: Any,
    outputs: Any,
    grids: Any,
    keys: Any,
    offsets: Any,
    stochastic: bool,
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        _round(sources[i] + 4 * start, outputs[i] + 4 * start, numel, grids[i], keys[i], offsets[i] + start, stochastic)


@_compiled
def _store_pass(
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


@_compiled
def _norm_pass(first: int, last: int, chunks: Any, tensors: Any, partial: Any) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        partial[c] = _squared_norm(tensors[i] + 4 * start, numel)


@_compiled
def _restore_pass(
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
        partial[c, 1], partial[c, 2] = _restore(parameters[i] + 4 * start, master, numel)
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


class _Chunks(NamedTuple):
    table: NDArray[np.int64]
    """[chunks, 3]: layer, first element, number of elements."""
    first: NDArray[np.int64]
    """[layers]: the layer's first chunk. Every layer has one, if only of no elements."""


@lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...]) -> _Chunks:
    numel = np.array(sizes, np.int64)
    counts = np.maximum(-(-numel // CHUNK), 1)
    first = np.cumsum(counts) - counts
    layer = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(counts.sum()) - first[layer]) * CHUNK
    return _Chunks(np.stack([layer, start, np.minimum(numel[layer] - start, CHUNK)], axis=1), first)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def _run(kernel: Callable[..., None], chunks: _Chunks, *arguments: Any) -> None:
    """Run a pass over all chunks, on as many threads as torch uses and the work is worth."""
    global _pool
    count = len(chunks.table)
    threads = max(min(torch.get_num_threads(), count // CHUNKS_PER_THREAD), 1)
    ends = [count * (thread + 1) // threads for thread in range(threads)]
    others = []
    if threads > 1:
        _pool = _pool or ThreadPoolExecutor(os.cpu_count(), "adapt")
        others = [_pool.submit(kernel, a, b, chunks.table, *arguments) for a, b in pairwise(ends)]
    kernel(0, ends[0], chunks.table, *arguments)
    for other in others:
        other.result()


def _addresses(tensors: Sequence[Tensor | None]) -> NDArray[np.int64]:
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], np.int64)


def quantize_(
    sources: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grids: NDArray[np.floating],
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    *,
    stochastic: bool,
) -> None:
    sizes = require_layout(torch.float32, sources=sources, outputs=outputs)
    tables = np.array(grids, np.float32), np.array(keys, np.uint64), np.array(offsets, np.int64)
    _run(_quantize_pass, _chunks(sizes), _addresses(sources), _addresses(outputs), *tables, stochastic)
    increment_version(outputs)


def store_(
    parameters: Sequence[Tensor],
    masters: Sequence[Tensor],
    grids: NDArray[np.floating],
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    nonzeros: Tensor,
    *,
    stochastic: bool,
) -> None:
    chunks = _chunks(require_layout(torch.float32, parameters=parameters, masters=masters))
    tables = np.array(grids, np.float32), np.array(keys, np.uint64), np.array(offsets, np.int64)
    counts = np.empty(len(chunks.table))
    _run(_store_pass, chunks, _addresses(parameters), _addresses(masters), *tables, counts, stochastic)
    nonzeros.numpy()[:] = np.add.reduceat(counts, chunks.first)
    increment_version(parameters)


def squared_norms_(tensors: Sequence[Tensor], out: Tensor) -> None:
    chunks = _chunks(require_layout(torch.float32, tensors=tensors))
    partial = np.empty(len(chunks.table))
    _run(_norm_pass, chunks, _addresses(tensors), partial)
    out.numpy()[:] = np.add.reduceat(partial, chunks.first)


def restore_(
    parameters: Sequence[Tensor],
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    sums: Sequence[Tensor | None],
    squared: Tensor,
    l1: Sequence[float] | NDArray[np.floating],
    l2: Sequence[float] | NDArray[np.floating],
    statistics: Tensor,
    *,
    normalize: bool,
) -> None:
    chunks = _chunks(
        require_layout(torch.float32, parameters=parameters, masters=masters, gradients=gradients, sums=sums)
    )
    addresses = [_addresses(tensors) for tensors in (parameters, masters, gradients, sums)]
    tables = np.array(squared.numpy(), np.float64), np.array(l1, np.float32), np.array(l2, np.float32)
    partial = np.empty((len(chunks.table), 3))
    _run(_restore_pass, chunks, *addresses, *tables, partial, normalize)
    statistics.numpy()[:] = np.add.reduceat(partial, chunks.first)
    increment_version(parameters)
    increment_version([gradient for gradient in gradients if gradient is not None])
