"""The passes over the chunks of one activation or error on the CPU, compiled by Numba.

`adapt.kernels.activation` documents masks and the tables of the sites (`formats`, `keys`, `drawn`, `peaks`, `samples`).
Addresses and numbers of elements are integers. A width is the size of an element in bytes: 4 for float32, 2 for
bfloat16.
"""

from typing import Any

import numpy as np

from adapt.kernels.activation import FROZEN, MASKED, NOISE
from adapt.kernels.numba_.bits import bits_of, from_bits, larger_magnitude, narrowed, widened
from adapt.kernels.numba_.chunks import CHUNK
from adapt.kernels.numba_.compiler import array, compiled, floats, prefetch
from adapt.kernels.numba_.rounding import round_nearest, round_stochastic, uniform

BLOCK = 256
"""The number of elements that a pass finishes before it continues. The mask's flags of a block are set together."""

AHEAD = 2 * BLOCK
"""Distance in elements at which a pass prefetches."""

assert CHUNK % BLOCK == BLOCK % MASKED == 0, "every flag of a mask belongs to one block"

_ZERO, _ZERO_BITS = np.float32(0), np.int32(0)
_LARGEST_BITS, _INFINITE_BITS = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
_BFLOAT16_BITS = np.int32(-0x10000)


@compiled
def _widen(source: int, output: int, numel: int) -> None:
    s, o = array(source, numel, np.uint16), floats(output, numel)
    for i in range(numel):
        o[i] = widened(s[i])


@compiled
def _narrow(source: int, output: int, numel: int) -> None:
    s, o = floats(source, numel), array(output, numel, np.uint16)
    for i in range(numel):
        o[i] = narrowed(s[i])


@compiled
def _round_and_measure(source: int, output: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> Any:
    """output ← Q(source), without overlap; return the bits of max|source|, which is not finite if an element is not.

    One loop does both, so that the arithmetic hides the latency of the loads.
    """
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    s, o = floats(source, numel), floats(output, numel)
    top = _ZERO_BITS
    if scale == _ZERO:
        for i in range(numel):
            top = larger_magnitude(s[i], top)
            o[i] = s[i]
    elif stochastic:
        for i in range(numel):
            top = larger_magnitude(s[i], top)
            o[i] = round_stochastic(s[i], uniform(first, i, k0, k1), scale, step, low, high)
    else:
        for i in range(numel):
            top = larger_magnitude(s[i], top)
            o[i] = round_nearest(s[i], scale, step, low, high)
    return top


@compiled
def _round_in_place(address: int, kept: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> Any:
    """x ← Q(x), otherwise like `_round_and_measure`. `kept` receives the values before rounding, which costs little."""
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    x, k = floats(address, numel), floats(kept, numel)
    top = _ZERO_BITS
    if scale == _ZERO:
        for i in range(numel):
            k[i] = x[i]
            top = larger_magnitude(x[i], top)
    elif stochastic:
        for i in range(numel):
            k[i] = x[i]
            top = larger_magnitude(x[i], top)
            x[i] = round_stochastic(x[i], uniform(first, i, k0, k1), scale, step, low, high)
    else:
        for i in range(numel):
            k[i] = x[i]
            top = larger_magnitude(x[i], top)
            x[i] = round_nearest(x[i], scale, step, low, high)
    return top


@compiled
def _largest_finite(address: int, numel: int) -> Any:
    """Return the bits of max|x| over the finite elements."""
    x = floats(address, numel)
    top = _ZERO_BITS
    for i in range(numel):
        if np.isfinite(x[i]):
            top = larger_magnitude(x[i], top)
    return top


@compiled
def _inside(address: int, mask: int, numel: int, minimum: Any, maximum: Any) -> None:
    x, m = floats(address, numel), array(mask, numel, np.uint8)
    for i in range(numel):
        m[i] = (x[i] >= minimum) & (x[i] <= maximum)


@compiled
def _keep(address: int, mask: int, numel: int) -> None:
    x, m = floats(address, numel), array(mask, numel, np.uint8)
    for i in range(numel):
        x[i] = x[i] if m[i] else np.float32(0)


@compiled
def begin(formats: Any, keys: Any, drawn: Any, site: int, width: int, numel: int, training: bool, replay: bool) -> Any:
    """Return a site's grid, its key, the offset of its first draw, and whether to draw; advance the site's stream.

    The grid's upper bound is reduced to what a type of `width` bytes can represent. Without a site the grid is zero and
    nothing is drawn.
    """
    grid = np.zeros(4, np.float32)
    if site < 0:
        return grid, np.uint64(0), 0, False
    grid[:] = formats[site, :4]
    if width == 2 and grid[0] != _ZERO:
        grid[3] = from_bits(bits_of(grid[3] * grid[1]) & _BFLOAT16_BITS) * grid[0]
    offset = drawn[site]
    if replay:
        offset -= numel
    elif training and formats[site, 4] != FROZEN:
        drawn[site] += numel
    return grid, np.uint64(keys[site]), offset, training and formats[site, 4] == NOISE


@compiled
def remember(tops: Any, formats: Any, peaks: Any, site: int) -> None:
    """Raise the site's peak to the largest finite magnitude."""
    if site >= 0 and formats[site, 4] != FROZEN:
        top = bits_of(peaks[site])
        for c in range(len(tops)):
            if top < tops[c]:
                top = tops[c]
        peaks[site] = from_bits(top)


@compiled
def keep_sample(source: int, width: int, numel: int, stride: int, formats: Any, samples: Any, site: int) -> None:
    """Keep every stride-th value as the site's sample, if the site wants one; it must run before values are rounded."""
    if formats[site, 5] == _ZERO:
        return
    sample, count = samples[site], (numel + stride - 1) // stride
    wide, narrow = floats(source, numel), array(source, numel, np.uint16)
    for i in range(count):
        value = wide[i * stride] if width == 4 else widened(narrow[i * stride])
        sample[i] = value if np.isfinite(value) else _ZERO
    sample[count:] = _ZERO


@compiled
def forward_pass(
    first: int,
    last: int,
    chunks: Any,
    source: int,
    output: int,
    width_in: int,
    width_out: int,
    mask: int,
    flags: int,
    grid: Any,
    key: Any,
    offset: int,
    noise: bool,
    tops: Any,
    outside: Any,
) -> None:
    wide, beside = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    saturated = array(flags, last * CHUNK // MASKED, np.uint8)
    minimum, maximum = grid[2] * grid[1], grid[3] * grid[1]
    # A grid with scale 0 leaves values as they are, so all are inside.
    limit = _LARGEST_BITS if grid[0] == _ZERO else bits_of(maximum)
    for c in range(first, last):
        highest, beyond = _ZERO_BITS, False
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], BLOCK):
            numel = min(BLOCK, chunks[c, 1] + chunks[c, 2] - start)
            x, y = source + width_in * start, output + width_out * start
            prefetch(x + AHEAD * width_in, width_in * numel)
            if width_in == 2:
                _widen(x, wide.ctypes.data, numel)
                x = wide.ctypes.data
            if x == y:
                x = beside.ctypes.data
                top = _round_in_place(y, x, numel, grid, key, offset + start, noise)
            else:
                z = beside.ctypes.data if width_out == 2 else y
                top = _round_and_measure(x, z, numel, grid, key, offset + start, noise)
                if width_out == 2:
                    _narrow(z, y, numel)
            finite = top if top < _INFINITE_BITS else _largest_finite(x, numel)
            highest = finite if finite > highest else highest
            if mask:
                saturated[start // MASKED : (start + numel + MASKED - 1) // MASKED] = top > limit
                if top > limit:
                    beyond = True
                    _inside(x, mask + start, numel, minimum, maximum)
        tops[c], outside[c] = highest, beyond


@compiled
def backward_pass(
    first: int,
    last: int,
    chunks: Any,
    gradient: int,
    output: int,
    width: int,
    mask: int,
    flags: int,
    grid: Any,
    key: Any,
    offset: int,
    noise: bool,
    tops: Any,
) -> None:
    """Mask, and round and measure, the errors; if `tops` is empty, only mask them."""
    wide, beside = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    saturated = array(flags, last * CHUNK // MASKED, np.uint8)
    measure = len(tops) > 0
    for c in range(first, last):
        highest = _ZERO_BITS
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], BLOCK):
            if not measure and gradient == output and not (mask and saturated[start // MASKED]):
                continue
            numel = min(BLOCK, chunks[c, 1] + chunks[c, 2] - start)
            g, e = gradient + width * start, output + width * start
            prefetch(g + AHEAD * width, width * numel)
            if width == 2:
                _widen(g, wide.ctypes.data, numel)
                g = wide.ctypes.data
            z = beside.ctypes.data if width == 2 else e
            if g == e:
                g = beside.ctypes.data
                top = _round_in_place(e, g, numel, grid, key, offset + start, noise)
            else:
                top = _round_and_measure(g, z, numel, grid, key, offset + start, noise)
            finite = top if top < _INFINITE_BITS else _largest_finite(g, numel)
            highest = finite if finite > highest else highest
            if mask and saturated[start // MASKED]:
                _keep(z, mask + start, numel)
            if width == 2:
                _narrow(z, e, numel)
        if measure:
            tops[c] = highest
