"""Rounding to a grid on the CPU, compiled by Numba: the random stream, one element, one chunk.

A grid is a row (scale 2^FL, step 2^−FL, low, high) of `adapt.rounding.grid`; scale 0 leaves values as they are.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from adapt.kernels.numba_.compiler import compiled, floats
from adapt.kernels.stream import FIRST_MULTIPLIER, SECOND_MULTIPLIER, UNIFORM_STEP

_ZERO, _ONE = np.float32(0), np.float32(1)


@intrinsic  # type: ignore[untyped-decorator]
def uniform(context: Any, first: Any, i: Any, k0: Any, k1: Any) -> Any:
    """Return the stream's draw for element first + i, in 32-bit instructions: Numba would widen uint32 to 64 bits."""

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


@compiled
def _clamped(r: Any, step: Any, low: Any, high: Any) -> Any:
    # NaN fails both comparisons and so stays NaN.
    r = high if r > high else r
    r = low if r < low else r
    return r * step


@compiled
def round_nearest(x: Any, scale: Any, step: Any, low: Any, high: Any) -> Any:
    return _clamped(np.rint(x * scale), step, low, high)


@compiled
def round_stochastic(x: Any, u: Any, scale: Any, step: Any, low: Any, high: Any) -> Any:
    v = x * scale
    floor = np.floor(v)
    return _clamped(floor + _ONE if u < v - floor else floor, step, low, high)


@compiled
def copy_chunk(source: int, output: int, numel: int) -> None:
    s, o = floats(source, numel), floats(output, numel)
    for i in range(numel):
        o[i] = s[i]


@compiled
def _nonzeros(address: int, numel: int) -> np.int32:
    x = floats(address, numel)
    count = np.int32(0)
    for i in range(numel):
        count = np.int32(count + (x[i] != _ZERO))
    return count


@compiled
def round_chunk(source: int, output: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> np.int32:
    """output ← Q(source) for one chunk; return the number of results that are not zero."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    s, o = floats(source, numel), floats(output, numel)
    count = np.int32(0)
    if scale == _ZERO:
        if source != output:
            copy_chunk(source, output, numel)
        count = np.int32(_nonzeros(output, numel))
    elif source != output:
        if stochastic:
            for i in range(numel):
                r = round_stochastic(s[i], uniform(first, i, k0, k1), scale, step, low, high)
                o[i] = r
                count = np.int32(count + (r != _ZERO))
        else:
            for i in range(numel):
                r = round_nearest(s[i], scale, step, low, high)
                o[i] = r
                count = np.int32(count + (r != _ZERO))
    # In place, the same loops over a single array, because loops over overlapping arrays are not vectorised.
    elif stochastic:
        for i in range(numel):
            r = round_stochastic(o[i], uniform(first, i, k0, k1), scale, step, low, high)
            o[i] = r
            count = np.int32(count + (r != _ZERO))
    else:
        for i in range(numel):
            r = round_nearest(o[i], scale, step, low, high)
            o[i] = r
            count = np.int32(count + (r != _ZERO))
    return count
