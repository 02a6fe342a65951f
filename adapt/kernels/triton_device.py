"""What one program does to one block of one tensor, in Triton.

A pass finds its block in `blocks` (layer, which of its blocks) and the layer's row in `table`: the number of elements,
the addresses of the tensors in the order of the pass's arguments (0 where there is none), then further columns.
ALIGNED says that all addresses are multiples of 16 bytes, FULL that the block lies within the tensor.
"""

import numpy as np
import triton
import triton.language as tl

from adapt.kernels.stream import FIRST_MULTIPLIER, SECOND_MULTIPLIER, UNIFORM_STEP

_FIRST = tl.constexpr(FIRST_MULTIPLIER)
_SECOND = tl.constexpr(SECOND_MULTIPLIER)
_UNIFORM_STEP = tl.constexpr(UNIFORM_STEP)
_INTEGERS_FROM = tl.constexpr(2.0**23)  # every float32 number from here on is an integer
_LARGEST = tl.constexpr(float(np.finfo(np.float32).max))


@triton.jit
def _pointer(row, column: tl.constexpr, ALIGNED: tl.constexpr):
    """The tensor whose address stands in a column of the table."""
    pointer = tl.load(row + column).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(pointer, position, numel, FULL: tl.constexpr):
    # Without a mask neighbouring elements travel together.
    if FULL:
        return tl.load(pointer + position)
    return tl.load(pointer + position, mask=position < numel, other=0.0)


@triton.jit
def _store(pointer, position, value, numel, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + position, value)
    else:
        tl.store(pointer + position, value, mask=position < numel)


@triton.jit
def _uniform(index, key):
    """The stream's draws, from indices and a key in int64."""
    x = index.to(tl.uint32) ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15) ^ (key >> 32).to(tl.uint32)) * _SECOND
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.int32).to(tl.float32) * _UNIFORM_STEP


@triton.jit
def _nearest_integer(v):
    """Half to even, with the sign of v. From 2^23 on float32 has no fractions: adding that and taking it off rounds."""
    magnitude = tl.abs(v)
    rounded = (magnitude + _INTEGERS_FROM) - _INTEGERS_FROM
    rounded = tl.where(magnitude < _INTEGERS_FROM, rounded, magnitude)
    sign = v.to(tl.int32, bitcast=True) & -2147483648
    return (rounded.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _round(x, position, row, GRID: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Q(x) for one block. Columns GRID … GRID + 3 hold the offset, the key and the grid's row in float32."""
    grid = (row + GRID + 2).to(tl.pointer_type(tl.float32))
    scale, step, low, high = tl.load(grid), tl.load(grid + 1), tl.load(grid + 2), tl.load(grid + 3)
    v = x * scale
    if STOCHASTIC:
        nearest = _nearest_integer(v)
        # The device's own floor flushes subnormal numbers to zero: that of −1e−40 would be 0.
        floor = tl.where(nearest > v, nearest - 1.0, nearest)
        u = _uniform(position + tl.load(row + GRID), tl.load(row + GRID + 1))
        r = tl.where(u < v - floor, floor + 1.0, floor)
    else:
        r = _nearest_integer(v)
    # Two comparisons that NaN fails, so that it stays.
    r = tl.where(r > high, high, r)
    r = tl.where(r < low, low, r)
    return tl.where(scale == 0.0, x, r * step)


@triton.jit
def _place(blocks, table, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """What this program works on: the table's row, its layer, the elements' positions, their number, are all there."""
    layer = tl.load(blocks + 2 * tl.program_id(0))
    # The compiler must see that the first position is a multiple of the block to move more than one element at a time.
    start = tl.load(blocks + 2 * tl.program_id(0) + 1) * BLOCK
    row = table + layer * WIDTH
    numel = tl.load(row)
    return row, layer, start + tl.arange(0, BLOCK), numel, start + BLOCK <= numel


@triton.jit
def _squares(x):
    wide = x.to(tl.float64)
    return tl.sum(wide * wide)


@triton.jit
def _count(rounded, position, numel):
    return tl.sum((rounded != 0.0).to(tl.int32) * (position < numel)).to(tl.float64)


@triton.jit
def _quantize_block(row, position, numel, partial, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, FULL: tl.constexpr):
    x, output = _load(_pointer(row, 1, ALIGNED), position, numel, FULL), _pointer(row, 2, ALIGNED)
    rounded = _round(x, position, row, 3, STOCHASTIC)
    _store(output, position, rounded, numel, FULL)
    if partial is not None:
        tl.store(partial + tl.program_id(0), _count(rounded, position, numel))


@triton.jit
def quantize_pass(
    blocks, table, partial, WIDTH: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """Where `partial` is None nothing is counted."""
    row, _, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    if full:
        _quantize_block(row, position, numel, partial, STOCHASTIC, ALIGNED, True)
    else:
        _quantize_block(row, position, numel, partial, STOCHASTIC, ALIGNED, False)


@triton.jit
def _store_block(row, position, numel, partial, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, FULL: tl.constexpr):
    x = _load(_pointer(row, 1, ALIGNED), position, numel, FULL)
    rounded = _round(x, position, row, 3, STOCHASTIC)
    _store(_pointer(row, 2, ALIGNED), position, x, numel, FULL)
    _store(_pointer(row, 1, ALIGNED), position, rounded, numel, FULL)
    tl.store(partial, _count(rounded, position, numel))


@triton.jit
def store_pass(
    blocks, table, partial, WIDTH: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    row, _, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    partial += tl.program_id(0)
    if full:
        _store_block(row, position, numel, partial, STOCHASTIC, ALIGNED, True)
    else:
        _store_block(row, position, numel, partial, STOCHASTIC, ALIGNED, False)


@triton.jit
def norm_pass(blocks, table, partial, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    row, _, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    pointer, partial = _pointer(row, 1, ALIGNED), partial + tl.program_id(0)
    if full:
        tl.store(partial, _squares(_load(pointer, position, numel, True)))
    else:
        tl.store(partial, _squares(_load(pointer, position, numel, False)))


@triton.jit
def _restore_block(
    row, position, numel, squared, partial, NORMALIZE: tl.constexpr, ALIGNED: tl.constexpr, FULL: tl.constexpr
):
    has_gradient, has_sum, finite = tl.load(row + 3) != 0, tl.load(row + 4) != 0, squared < float("inf")
    master = _load(_pointer(row, 1, ALIGNED), position, numel, FULL)
    if tl.load(row + 2) != 0:
        _store(_pointer(row, 2, ALIGNED), position, master, numel, FULL)
    gradient = tl.zeros_like(master)
    if has_gradient:
        gradient = _load(_pointer(row, 3, ALIGNED), position, numel, FULL)
    total = tl.zeros_like(master)
    if has_sum:
        total = _load(_pointer(row, 4, ALIGNED), position, numel, FULL)
        if has_gradient & finite:
            total += gradient
            _store(_pointer(row, 4, ALIGNED), position, total, numel, FULL)
    if has_gradient:
        if finite:
            if NORMALIZE & (squared > 0.0):
                gradient = gradient * tl.minimum(1.0 / tl.sqrt(squared), _LARGEST).to(tl.float32)
            coefficients = (row + 5).to(tl.pointer_type(tl.float32))
            l1, l2 = tl.load(coefficients), tl.load(coefficients + 1)
            if (l1 != 0.0) | (l2 != 0.0):
                sign = tl.where(master > 0.0, 1.0, tl.where(master < 0.0, -1.0, 0.0))
                gradient = gradient + (sign * l1 + master * l2)
        else:
            gradient = tl.zeros_like(master)
        _store(_pointer(row, 3, ALIGNED), position, gradient, numel, FULL)
    tl.store(partial, _squares(total))
    tl.store(partial + 1, tl.sum(tl.abs(master).to(tl.float64)))
    tl.store(partial + 2, _squares(master))


@triton.jit
def restore_pass(
    blocks,
    table,
    squared,
    partial,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, layer, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    norm, partial = tl.load(squared + layer), partial + 3 * tl.program_id(0)
    if full:
        _restore_block(row, position, numel, norm, partial, NORMALIZE, ALIGNED, True)
    else:
        _restore_block(row, position, numel, norm, partial, NORMALIZE, ALIGNED, False)


@triton.jit
def add_up(ends, partial, out, layer_stride, column_stride, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """out[layer, column] ← the sum over the layer's blocks, always in the same order."""
    layer, column = tl.program_id(0), tl.program_id(1)
    block, last = tl.load(ends + layer), tl.load(ends + layer + 1)
    total = tl.zeros((LANES,), tl.float64)
    while block < last:
        lanes = block + tl.arange(0, LANES)
        total += tl.load(partial + lanes * COLUMNS + column, mask=lanes < last, other=0.0)
        block += LANES
    tl.store(out + layer * layer_stride + column * column_stride, tl.sum(total))
