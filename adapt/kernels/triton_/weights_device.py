"""The passes over one block of one tensor, in Triton.

A pass finds its block in `blocks` (the layer, the block's index in it) and the layer's row in `table`: the number of
elements, the addresses of the tensors in the order of the pass's arguments (0 where there is none), then more columns.
ALIGNED says that all addresses are multiples of 16 bytes, FULL that the whole block lies within the tensor.
"""

import numpy as np
import triton
import triton.language as tl

from adapt.kernels.triton_.rounding import load, round_block, store

_LARGEST = tl.constexpr(float(np.finfo(np.float32).max))


@triton.jit
def _pointer(row, column: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a pointer to the tensor whose address is in this column of the table."""
    pointer = tl.load(row + column).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _place(blocks, table, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return this program's row, layer and positions, the number of elements, and whether the block is full."""
    layer = tl.load(blocks + 2 * tl.program_id(0))
    # The compiler loads several elements at once only if it sees that the first position is a multiple of BLOCK.
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
def _measure(rounded, source, position, numel, partial):
    """Store the figures of one block: the number of non-zero rounded elements, ‖source‖₁ and ‖source‖₂²."""
    tl.store(partial, _count(rounded, position, numel))
    tl.store(partial + 1, tl.sum(tl.abs(source).to(tl.float64)))
    tl.store(partial + 2, _squares(source))


@triton.jit
def _quantize_block(row, position, numel, partial, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, FULL: tl.constexpr):
    x, output = load(_pointer(row, 1, ALIGNED), position, numel, FULL), _pointer(row, 2, ALIGNED)
    rounded = round_block(x, position, row, 3, STOCHASTIC)
    store(output, position, rounded, numel, FULL)
    if partial is not None:
        _measure(rounded, x, position, numel, partial + 3 * tl.program_id(0))


@triton.jit
def quantize_pass(
    blocks, table, partial, WIDTH: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """outputs ← Q(sources). If `partial` is None, nothing is measured."""
    row, _, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    if full:
        _quantize_block(row, position, numel, partial, STOCHASTIC, ALIGNED, True)
    else:
        _quantize_block(row, position, numel, partial, STOCHASTIC, ALIGNED, False)


@triton.jit
def _store_block(row, position, numel, partial, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, FULL: tl.constexpr):
    x = load(_pointer(row, 1, ALIGNED), position, numel, FULL)
    rounded = round_block(x, position, row, 3, STOCHASTIC)
    store(_pointer(row, 2, ALIGNED), position, x, numel, FULL)
    store(_pointer(row, 1, ALIGNED), position, rounded, numel, FULL)
    _measure(rounded, x, position, numel, partial)


@triton.jit
def store_pass(
    blocks, table, partial, WIDTH: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    row, _, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    partial += 3 * tl.program_id(0)
    if full:
        _store_block(row, position, numel, partial, STOCHASTIC, ALIGNED, True)
    else:
        _store_block(row, position, numel, partial, STOCHASTIC, ALIGNED, False)


@triton.jit
def norm_pass(blocks, table, partial, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """partial ← ‖x‖₂² of each block; 0 for a missing tensor."""
    row, _, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    pointer, partial = _pointer(row, 2, ALIGNED), partial + tl.program_id(0)
    if tl.load(row + 2) == 0:
        tl.store(partial, 0.0)
    elif full:
        tl.store(partial, _squares(load(pointer, position, numel, True)))
    else:
        tl.store(partial, _squares(load(pointer, position, numel, False)))


@triton.jit
def _add_block(row, position, numel, squared, partial, ALIGNED: tl.constexpr, FULL: tl.constexpr):
    total = load(_pointer(row, 2, ALIGNED), position, numel, FULL)
    if (tl.load(row + 3) != 0) & (squared < float("inf")):
        total += load(_pointer(row, 3, ALIGNED), position, numel, FULL)
        store(_pointer(row, 2, ALIGNED), position, total, numel, FULL)
    tl.store(partial, _squares(total))


@triton.jit
def add_pass(blocks, table, squared, partial, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """sums += gradients, and partial ← ‖sum‖₂² of each block; 0 for a missing sum."""
    row, layer, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    norm, partial = tl.load(squared + layer), partial + tl.program_id(0)
    if tl.load(row + 2) == 0:
        tl.store(partial, 0.0)
    elif full:
        _add_block(row, position, numel, norm, partial, ALIGNED, True)
    else:
        _add_block(row, position, numel, norm, partial, ALIGNED, False)


@triton.jit
def _treated(gradient, master, row, squared, PENALTIES: tl.constexpr, NORMALIZE: tl.constexpr):
    """Return a gradient after its treatment. Column PENALTIES of the row holds l1 and l2 in float32."""
    treated = tl.zeros_like(master)
    if squared < float("inf"):
        treated = gradient
        if NORMALIZE & (squared > 0.0):
            treated = gradient * tl.minimum(1.0 / tl.sqrt(squared), _LARGEST).to(tl.float32)
        coefficients = (row + PENALTIES).to(tl.pointer_type(tl.float32))
        l1, l2 = tl.load(coefficients), tl.load(coefficients + 1)
        if (l1 != 0.0) | (l2 != 0.0):
            sign = tl.where(master > 0.0, 1.0, tl.where(master < 0.0, -1.0, 0.0))
            treated = treated + (sign * l1 + master * l2)
    return treated


@triton.jit
def _restore_block(row, position, numel, squared, NORMALIZE: tl.constexpr, ALIGNED: tl.constexpr, FULL: tl.constexpr):
    master = load(_pointer(row, 1, ALIGNED), position, numel, FULL)
    if tl.load(row + 2) != 0:
        store(_pointer(row, 2, ALIGNED), position, master, numel, FULL)
    if tl.load(row + 3) != 0:
        gradient = load(_pointer(row, 3, ALIGNED), position, numel, FULL)
        treated = _treated(gradient, master, row, squared, 4, NORMALIZE)
        store(_pointer(row, 3, ALIGNED), position, treated, numel, FULL)


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
    """parameters ← masters, and treat the gradients; `partial` is None, because nothing is measured."""
    row, layer, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    norm = tl.load(squared + layer)
    if full:
        _restore_block(row, position, numel, norm, NORMALIZE, ALIGNED, True)
    else:
        _restore_block(row, position, numel, norm, NORMALIZE, ALIGNED, False)


@triton.jit
def _descend_block(
    row,
    position,
    numel,
    squared,
    partial,
    NORMALIZE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    master = load(_pointer(row, 2, ALIGNED), position, numel, FULL)
    if tl.load(row + 3) != 0:
        gradient = load(_pointer(row, 3, ALIGNED), position, numel, FULL)
        rates = (row + 6).to(tl.pointer_type(tl.float32))
        sign, decay = tl.load(rates + 1), tl.load(rates + 2)
        direction = _treated(gradient, master, row, squared, 5, NORMALIZE) * sign
        if decay != 0.0:
            direction += master * decay
        if tl.load(row + 4) != 0:
            momentum = tl.load(rates + 3)
            buffer = load(_pointer(row, 4, ALIGNED), position, numel, FULL) * momentum + direction * tl.load(rates + 4)
            store(_pointer(row, 4, ALIGNED), position, buffer, numel, FULL)
            if tl.load(rates + 5) != 0.0:
                direction += buffer * momentum
            else:
                direction = buffer
        master += direction * tl.load(rates)
        store(_pointer(row, 2, ALIGNED), position, master, numel, FULL)
    rounded = round_block(master, position, row, 9, STOCHASTIC)
    store(_pointer(row, 1, ALIGNED), position, rounded, numel, FULL)
    _measure(rounded, master, position, numel, partial)


@triton.jit
def descend_pass(
    blocks,
    table,
    squared,
    partial,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make a step of descent. The further columns are one of penalties, three of rates, then those of `round_block`."""
    row, layer, position, numel, full = _place(blocks, table, WIDTH, BLOCK)
    norm, partial = tl.load(squared + layer), partial + 3 * tl.program_id(0)
    if full:
        _descend_block(row, position, numel, norm, partial, NORMALIZE, STOCHASTIC, ALIGNED, True)
    else:
        _descend_block(row, position, numel, norm, partial, NORMALIZE, STOCHASTIC, ALIGNED, False)


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
