"""The passes over one block of an activation or an error, in Triton.

The pointers to the tables of the sites point to the entries of one site. HALF is the type of the output: 0 for float32,
16 for float16, 19 for bfloat16. FULL says that the whole block lies within the tensor.
"""

import triton
import triton.language as tl

from adapt.kernels.activation import FROZEN, NOISE
from adapt.kernels.triton_.rounding import load, nearest_integer, store, uniform

_FROZEN, _NOISE = tl.constexpr(float(FROZEN)), tl.constexpr(float(NOISE))
_INFINITE_BITS = tl.constexpr(0x7F800000)
_LONGEST = tl.constexpr(2.0**31)  # steps in the range of the longest word
_LARGEST_HALF = tl.constexpr(65504.0)
_SMALLEST_NORMAL_HALF = tl.constexpr(2.0**-14)
_HALF_STEPS = tl.constexpr(2.0**24)  # the smallest step of float16 is 2^-24


@triton.jit
def _bounds(row, HALF: tl.constexpr):
    """Return (scale, step, low, high) of a site, with the bounds reduced to what the type can represent."""
    scale, step, low, high = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    if HALF == 16:
        ends = tl.minimum(_LARGEST_HALF * scale, _LONGEST).to(tl.int64).to(tl.float32)
        bound = tl.minimum(high, ends) * step
        normal = (bound.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        subnormal = tl.minimum(bound * _HALF_STEPS, 1024.0).to(tl.int64).to(tl.float32) / _HALF_STEPS
        low = tl.maximum(low, -ends)
        high = tl.where(bound < _SMALLEST_NORMAL_HALF, subnormal, normal) * scale
    if HALF == 19:
        high = ((high * step).to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True) * scale
    return scale, step, low, high


@triton.jit
def _rounded(x, index, scale, step, low, high, key, noise):
    v = x * scale
    nearest = nearest_integer(v)
    # The device's floor flushes subnormal numbers to zero: floor(−1e−40) would be 0.
    floor = tl.where(nearest > v, nearest - 1.0, nearest)
    drawn = tl.where(uniform(index, key) < v - floor, floor + 1.0, floor)
    r = tl.where(noise, drawn, nearest)
    # NaN fails both comparisons and so stays NaN.
    r = tl.where(r > high, high, r)
    r = tl.where(r < low, low, r)
    return tl.where(scale == 0.0, x, r * step)


@triton.jit
def _record(x, position, numel, peak, mode):
    """Raise the peak to the largest finite magnitude. The bits of non-negative numbers are ordered like integers."""
    bits = tl.abs(x).to(tl.int32, bitcast=True)
    bits = tl.where((position < numel) & (bits < _INFINITE_BITS), bits, 0)
    top = tl.where(mode == _FROZEN, 0, tl.max(bits, axis=0))
    tl.atomic_max(peak.to(tl.pointer_type(tl.int32)), top)


@triton.jit
def _keep_sample(x, position, numel, stride, sample, SAMPLE: tl.constexpr):
    """Keep the block's part of every stride-th value; the first block clears the places that the tensor leaves."""
    finite = tl.abs(x).to(tl.int32, bitcast=True) < _INFINITE_BITS
    chosen = (position < numel) & (position % stride == 0)
    tl.store(sample + position // stride, tl.where(finite, x, 0.0), mask=chosen)
    if tl.program_id(0) == 0:
        place = tl.arange(0, SAMPLE)
        tl.store(sample + place, tl.zeros([SAMPLE], tl.float32), mask=place.to(tl.int64) * stride >= numel)


@triton.jit
def _forward_block(
    source,
    output,
    mask,
    formats,
    keys,
    drawn,
    peaks,
    sample,
    position,
    numel,
    stride,
    HALF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    TRAINING: tl.constexpr,
    REPLAY: tl.constexpr,
    SAMPLE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    x = load(source, position, numel, FULL).to(tl.float32)
    scale, step, low, high = _bounds(formats, HALF)
    mode = tl.load(formats + 4)
    if HAS_MASK:
        inside = tl.where(scale == 0.0, position >= 0, (x >= low * step) & (x <= high * step))
        outside = tl.where((position < numel) & (inside == 0), 1, 0)
        saturated = tl.max(tl.reshape(outside, [BLOCK // MASKED, MASKED]), axis=1)
        group = tl.program_id(0).to(tl.int64) * (BLOCK // MASKED) + tl.arange(0, BLOCK // MASKED)
        tl.store(mask + numel + group, saturated.to(tl.uint8), mask=group * MASKED < numel)
        if tl.max(saturated, axis=0) != 0:
            store(mask, position, inside.to(tl.uint8), numel, FULL)
    offset = tl.load(drawn)
    if REPLAY:
        offset -= numel
    noise = mode == _NOISE if TRAINING else mode < 0.0
    y = _rounded(x, position + offset, scale, step, low, high, tl.load(keys), noise)
    store(output, position, y.to(output.dtype.element_ty), numel, FULL)
    if TRAINING and not REPLAY:
        _record(x, position, numel, peaks, mode)
        if tl.load(formats + 5) != 0.0:
            _keep_sample(x, position, numel, stride, sample, SAMPLE)


@triton.jit
def forward_pass(
    source,
    output,
    mask,
    formats,
    keys,
    drawn,
    peaks,
    numel,
    sample,
    stride,
    HALF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    TRAINING: tl.constexpr,
    REPLAY: tl.constexpr,
    SAMPLE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    position = start + tl.arange(0, BLOCK)
    if start + BLOCK <= numel:
        _forward_block(
            source, output, mask, formats, keys, drawn, peaks, sample, position, numel, stride,
            HALF, HAS_MASK, TRAINING, REPLAY, SAMPLE, MASKED, BLOCK, True,
        )  # fmt: skip
    else:
        _forward_block(
            source, output, mask, formats, keys, drawn, peaks, sample, position, numel, stride,
            HALF, HAS_MASK, TRAINING, REPLAY, SAMPLE, MASKED, BLOCK, False,
        )  # fmt: skip


@triton.jit
def _backward_block(
    gradient,
    output,
    mask,
    formats,
    keys,
    drawn,
    peaks,
    position,
    numel,
    HALF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ROUND: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    g = load(gradient, position, numel, FULL).to(tl.float32)
    if ROUND:
        scale, step, low, high = _bounds(formats, HALF)
        mode = tl.load(formats + 4)
        _record(g, position, numel, peaks, mode)
        index = position + tl.load(drawn)
        g = _rounded(g, index, scale, step, low, high, tl.load(keys), mode == _NOISE)
    if HAS_MASK:
        saturated = tl.load(mask + numel + position // MASKED, mask=position < numel, other=0)
        inside = tl.load(mask + position, mask=(position < numel) & (saturated != 0), other=1)
        g = tl.where(inside != 0, g, 0.0)
    store(output, position, g.to(output.dtype.element_ty), numel, FULL)


@triton.jit
def backward_pass(
    gradient,
    output,
    mask,
    formats,
    keys,
    drawn,
    peaks,
    numel,
    HALF: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ROUND: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    position = start + tl.arange(0, BLOCK)
    if start + BLOCK <= numel:
        _backward_block(
            gradient, output, mask, formats, keys, drawn, peaks, position, numel,
            HALF, HAS_MASK, ROUND, MASKED, BLOCK, True,
        )  # fmt: skip
    else:
        _backward_block(
            gradient, output, mask, formats, keys, drawn, peaks, position, numel,
            HALF, HAS_MASK, ROUND, MASKED, BLOCK, False,
        )  # fmt: skip


@triton.jit
def advance_stream(formats, drawn, numel):
    """Advance a site's stream, in a separate launch, after all programs of the pass have read its position."""
    if tl.load(formats + 4) != _FROZEN:
        tl.store(drawn, tl.load(drawn) + numel)
