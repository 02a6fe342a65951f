"""Rounding to a grid in Triton: the random stream and one block, as in `adapt.kernels.numba_.rounding`.

FULL says that the whole block lies within its tensor.
"""

import triton
import triton.language as tl

from adapt.kernels.stream import FIRST_MULTIPLIER, SECOND_MULTIPLIER, UNIFORM_STEP

_FIRST = tl.constexpr(FIRST_MULTIPLIER)
_SECOND = tl.constexpr(SECOND_MULTIPLIER)
_UNIFORM_STEP = tl.constexpr(UNIFORM_STEP)
_INTEGERS_FROM = tl.constexpr(2.0**23)  # every float32 number from here on is an integer


@triton.jit
def load(pointer, position, numel, FULL: tl.constexpr):
    # Without a mask the compiler can load several neighbouring elements at once.
    if FULL:
        return tl.load(pointer + position)
    return tl.load(pointer + position, mask=position < numel, other=0.0)


@triton.jit
def store(pointer, position, value, numel, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + position, value)
    else:
        tl.store(pointer + position, value, mask=position < numel)


@triton.jit
def uniform(index, key):
    """Return the stream's draws for indices and a key in int64."""
    x = index.to(tl.uint32) ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15) ^ (key >> 32).to(tl.uint32)) * _SECOND
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.int32).to(tl.float32) * _UNIFORM_STEP


@triton.jit
def nearest_integer(v):
    """Round half to even, keeping the sign of v: adding 2^23, where float32 has no fractions, and subtracting it."""
    magnitude = tl.abs(v)
    rounded = (magnitude + _INTEGERS_FROM) - _INTEGERS_FROM
    rounded = tl.where(magnitude < _INTEGERS_FROM, rounded, magnitude)
    sign = v.to(tl.int32, bitcast=True) & -2147483648
    return (rounded.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def round_block(x, position, row, GRID: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Return Q(x) for one block. Columns GRID … GRID + 3 of the row are the offset, key and grid in float32."""
    grid = (row + GRID + 2).to(tl.pointer_type(tl.float32))
    scale, step, low, high = tl.load(grid), tl.load(grid + 1), tl.load(grid + 2), tl.load(grid + 3)
    v = x * scale
    if STOCHASTIC:
        nearest = nearest_integer(v)
        # The device's floor flushes subnormal numbers to zero: floor(−1e−40) would be 0.
        floor = tl.where(nearest > v, nearest - 1.0, nearest)
        u = uniform(position + tl.load(row + GRID), tl.load(row + GRID + 1))
        r = tl.where(u < v - floor, floor + 1.0, floor)
    else:
        r = nearest_integer(v)
    # NaN fails both comparisons and so stays NaN.
    r = tl.where(r > high, high, r)
    r = tl.where(r < low, low, r)
    return tl.where(scale == 0.0, x, r * step)
