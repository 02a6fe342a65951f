"""What the CPU does to one chunk of one tensor, compiled by Numba, and the passes that go from chunk to chunk.

Addresses and numbers of elements come as integers, since a list of arrays would cost more to hand over than a small
network takes to round. A pass works on the rows `first` … `last` − 1 of the table of chunks: layer, first element,
number of elements.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from adapt.kernels.stream import FIRST_MULTIPLIER, SECOND_MULTIPLIER, UNIFORM_STEP

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

_LARGEST = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0), np.float32(1)


def compiled(function: Callable[..., Any], *, reassociate: bool = False) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where a folder can be written.

    Numba takes a result from disk as long as the function's own file has not changed: after changing functions that
    are called from another file, remove what is kept for that one (`adapt/kernels/__pycache__`).
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"} if reassociate else False}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def pointer(context: Any, address: Any) -> Any:
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
_add = compiled(_add, reassociate=True)


@compiled
def _clamped(r: Any, step: Any, low: Any, high: Any) -> Any:
    # Two comparisons that NaN fails, so that it stays.
    r = high if r > high else r
    r = low if r < low else r
    return r * step


@compiled
def _nearest(x: Any, scale: Any, step: Any, low: Any, high: Any) -> Any:
    return _clamped(np.rint(x * scale), step, low, high)


@compiled
def _stochastic(x: Any, u: Any, scale: Any, step: Any, low: Any, high: Any) -> Any:
    v = x * scale
    floor = np.floor(v)
    return _clamped(floor + _ONE if u < v - floor else floor, step, low, high)


@compiled
def _copy(source: int, output: int, numel: int) -> None:
    s, o = numba.carray(pointer(source), numel), numba.carray(pointer(output), numel)
    for i in range(numel):
        o[i] = s[i]


@compiled
def round_chunk(source: int, output: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> None:
    """output ← Q(source) for one chunk."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    s, o = numba.carray(pointer(source), numel), numba.carray(pointer(output), numel)
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


@compiled
def _store(parameter: int, master: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> np.int32:
    """master ← parameter and parameter ← Q(master) for one chunk; how many of the results are not zero."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    p, m = numba.carray(pointer(parameter), numel), numba.carray(pointer(master), numel)
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


@compiled
def _quantize_and_count(
    source: int, output: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool
) -> np.int32:
    """output ← Q(source) for one chunk; how many of the results are not zero."""
    round_chunk(source, output, numel, grid, key, offset, stochastic)
    o = numba.carray(pointer(output), numel)
    count = np.int32(0)
    for i in range(numel):
        count = np.int32(count + (o[i] != _ZERO))
    return count


@compiled
def _squared_norm(address: int, numel: int) -> float:
    x = numba.carray(pointer(address), numel)
    total = 0.0
    for i in range(numel):
        total = _add(total, np.float64(x[i]) * np.float64(x[i]))
    return total


@compiled
def _norms(address: int, numel: int) -> tuple[float, float]:
    """‖m‖₁ and ‖m‖₂² of one chunk."""
    m = numba.carray(pointer(address), numel)
    absolute, squares = 0.0, 0.0
    for i in range(numel):
        wide = np.float64(m[i])
        absolute = _add(absolute, abs(wide))
        squares = _add(squares, wide * wide)
    return absolute, squares


@compiled
def _treated(g: Any, m: Any, factor: Any, l1: Any, l2: Any) -> Any:
    """g·factor + (l1·sign(m) + l2·m), without the bracket where there is no penalty."""
    g = g * factor
    if l1 != _ZERO or l2 != _ZERO:
        g += (_ONE if m > _ZERO else (-_ONE if m < _ZERO else _ZERO)) * l1 + m * l2
    return g


@compiled
def _treat(gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any) -> None:
    g, m = numba.carray(pointer(gradient), numel), numba.carray(pointer(master), numel)
    for i in range(numel):
        g[i] = _treated(g[i], m[i], factor, l1, l2)


@compiled
def _accumulate_and_treat(total: int, gradient: int, master: int, numel: int, factor: Any, l1: Any, l2: Any) -> float:
    """sum ← sum + g, then g treated, for one chunk; ‖sum‖₂²."""
    s = numba.carray(pointer(total), numel)
    g, m = numba.carray(pointer(gradient), numel), numba.carray(pointer(master), numel)
    squares = 0.0
    for i in range(numel):
        s[i] += g[i]
        squares = _add(squares, np.float64(s[i]) * np.float64(s[i]))
        g[i] = _treated(g[i], m[i], factor, l1, l2)
    return squares


@compiled
def _clear(address: int, numel: int) -> None:
    x = numba.carray(pointer(address), numel)
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
    stochastic: bool,
) -> None:
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        round_chunk(
            sources[i] + 4 * start, outputs[i] + 4 * start, numel, grids[i], keys[i], offsets[i] + start, stochastic
        )


@compiled
def quantize_and_count_pass(
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
    for c in range(first, last):
        i, start, numel = chunks[c, 0], chunks[c, 1], chunks[c, 2]
        source, output = sources[i] + 4 * start, outputs[i] + 4 * start
        counts[c] = _quantize_and_count(source, output, numel, grids[i], keys[i], offsets[i] + start, stochastic)


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
            _copy(master, parameters[i] + 4 * start, numel)
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
