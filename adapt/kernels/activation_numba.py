"""The passes over activations for the CPU, compiled by Numba: one walk through the tensor, chunk by chunk.

`adapt.kernels.activation.ActivationKernels` says what each function does.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels import activation_torch
from adapt.kernels.activation import DECAY, FROZEN, MASKED, NOISE, State
from adapt.kernels.numba_ import CHUNK, CHUNKS_PER_THREAD, Chunks, chunks_of, run
from adapt.kernels.numba_device import _copy, _nearest, _stochastic, _uniform, compiled, pointer
from adapt.precision import HIGHEST_FRACTION, LOWEST_FRACTION

BLOCK = 1024
"""Elements that a pass takes through all that it does before the next. Those of a mask's flags are set together."""

assert CHUNK % BLOCK == BLOCK % MASKED == 0, "every flag of a mask belongs to one block"

_BYTES = {torch.float32: 4, torch.bfloat16: 2}
_ZERO, _ONE, _ZERO_BITS = np.float32(0), np.float32(1), np.int32(0)
_DECAY = np.float32(DECAY)
_LARGEST_BITS, _INFINITE_BITS = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
_BFLOAT16_BITS = np.int32(-0x10000)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer_to(context: Any, address: Any, kind: Any) -> Any:
    """The array of another element type that starts at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


@intrinsic  # type: ignore[untyped-decorator]
def _larger_magnitude(context: Any, x: Any, bits: Any) -> Any:
    """The larger of |x| and a magnitude, both as float32 bits: their order is that of integers, NaN above all."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        magnitude = builder.and_(builder.bitcast(arguments[0], word), word(0x7FFFFFFF))
        return builder.select(builder.icmp_signed(">", magnitude, arguments[1]), magnitude, arguments[1])

    return types.int32(types.float32, types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _bits(context: Any, x: Any) -> Any:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _from_bits(context: Any, bits: Any) -> Any:
    """The float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _widened(context: Any, x: Any) -> Any:
    """bfloat16 bits to float32: exact."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], word), word(16)), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def _narrowed(context: Any, x: Any) -> Any:
    """float32 to bfloat16 bits, to nearest even; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        half = builder.add(builder.and_(builder.lshr(bits, word(16)), word(1)), word(0x7FFF))
        rounded = builder.add(bits, half)
        chosen = builder.select(builder.fcmp_unordered("uno", arguments[0], arguments[0]), word(0x7FC00000), rounded)
        return builder.trunc(builder.lshr(chosen, word(16)), ir.IntType(16))

    return types.uint16(types.float32), generate


@compiled
def _widen(source: int, output: int, numel: int) -> None:
    s, o = numba.carray(_pointer_to(source, np.uint16), numel), numba.carray(pointer(output), numel)
    for i in range(numel):
        o[i] = _widened(s[i])


@compiled
def _narrow(source: int, output: int, numel: int) -> None:
    s, o = numba.carray(pointer(source), numel), numba.carray(_pointer_to(output, np.uint16), numel)
    for i in range(numel):
        o[i] = _narrowed(s[i])


@compiled
def _round_and_measure(source: int, output: int, numel: int, grid: Any, key: Any, offset: int, stochastic: bool) -> Any:
    """output ← Q(source), which do not overlap, and the bits of max|source|: one loop, so that loads hide behind work.

    They are not those of a finite number where an element is not finite.
    """
    scale, step, low, high = grid[0], grid[1], grid[2], grid[3]
    first, k0, k1 = np.uint32(offset), np.uint32(key), np.uint32(key >> np.uint64(32))
    s, o = numba.carray(pointer(source), numel), numba.carray(pointer(output), numel)
    top = _ZERO_BITS
    if scale == _ZERO:
        for i in range(numel):
            top = _larger_magnitude(s[i], top)
            o[i] = s[i]
    elif stochastic:
        for i in range(numel):
            top = _larger_magnitude(s[i], top)
            o[i] = _stochastic(s[i], _uniform(first, i, k0, k1), scale, step, low, high)
    else:
        for i in range(numel):
            top = _larger_magnitude(s[i], top)
            o[i] = _nearest(s[i], scale, step, low, high)
    return top


@compiled
def _largest_finite(address: int, numel: int) -> Any:
    """The bits of max|x| over the finite elements."""
    x = numba.carray(pointer(address), numel)
    top = _ZERO_BITS
    for i in range(numel):
        if np.isfinite(x[i]):
            top = _larger_magnitude(x[i], top)
    return top


@compiled
def _inside(address: int, mask: int, numel: int, minimum: Any, maximum: Any) -> None:
    x, m = numba.carray(pointer(address), numel), numba.carray(_pointer_to(mask, np.uint8), numel)
    for i in range(numel):
        m[i] = (x[i] >= minimum) & (x[i] <= maximum)


@compiled
def _keep(address: int, mask: int, numel: int) -> None:
    x, m = numba.carray(pointer(address), numel), numba.carray(_pointer_to(mask, np.uint8), numel)
    for i in range(numel):
        x[i] = x[i] if m[i] else np.float32(0)


@compiled
def _begin(formats: Any, keys: Any, drawn: Any, site: int, width: int, numel: int, training: bool, replay: bool) -> Any:
    """What a pass over a site needs: its grid, its key, its first draw's place in the stream, whether to draw at all.

    Moves on in the stream. The grid's upper bound is the largest that a type of `width` bytes holds; it is all zero,
    and the rest idle, where there is no site.
    """
    grid = np.zeros(4, np.float32)
    if site < 0:
        return grid, np.uint64(0), 0, False
    grid[:] = formats[site, :4]
    if width == 2 and grid[0] != _ZERO:
        grid[3] = _from_bits(_bits(grid[3] * grid[1]) & _BFLOAT16_BITS) * grid[0]
    offset = drawn[site]
    if replay:
        offset -= numel
    elif training and formats[site, 4] != FROZEN:
        drawn[site] += numel
    return grid, np.uint64(keys[site]), offset, training and formats[site, 4] == NOISE


@compiled
def _remember(tops: Any, formats: Any, peaks: Any, site: int) -> None:
    """Keep the largest finite magnitude."""
    if site >= 0 and formats[site, 4] != FROZEN:
        top = _bits(peaks[site])
        for c in range(len(tops)):
            if top < tops[c]:
                top = tops[c]
        peaks[site] = _from_bits(top)


@compiled
def _forward_pass(
    first: int,
    last: int,
    chunks: Any,
    source: int,
    output: int,
    bytes_in: int,
    bytes_out: int,
    mask: int,
    flags: int,
    grid: Any,
    key: Any,
    offset: int,
    noise: bool,
    tops: Any,
    outside: Any,
) -> None:
    wide, rounded = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    saturated = numba.carray(_pointer_to(flags, np.uint8), last * CHUNK // MASKED)
    minimum, maximum = grid[2] * grid[1], grid[3] * grid[1]
    # A grid without a scale leaves values as they are: all lie inside.
    limit = _LARGEST_BITS if grid[0] == _ZERO else _bits(maximum)
    for c in range(first, last):
        highest, beyond = _ZERO_BITS, False
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], BLOCK):
            numel = min(BLOCK, chunks[c, 1] + chunks[c, 2] - start)
            x, y = source + bytes_in * start, output + bytes_out * start
            if bytes_in == 2:
                _widen(x, wide.ctypes.data, numel)
                x = wide.ctypes.data
            # In place the values must outlast their rounding until the mask is written.
            z = rounded.ctypes.data if bytes_out == 2 or x == y else y
            top = _round_and_measure(x, z, numel, grid, key, offset + start, noise)
            finite = top if top < _INFINITE_BITS else _largest_finite(x, numel)
            highest = finite if finite > highest else highest
            if mask:
                saturated[start // MASKED : (start + numel + MASKED - 1) // MASKED] = top > limit
                if top > limit:
                    beyond = True
                    _inside(x, mask + start, numel, minimum, maximum)
            if bytes_out == 2:
                _narrow(z, y, numel)
            elif z != y:
                _copy(z, y, numel)
        tops[c], outside[c] = highest, beyond


@compiled
def _backward_pass(
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
    wide, rounded = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    saturated = numba.carray(_pointer_to(flags, np.uint8), last * CHUNK // MASKED)
    for c in range(first, last):
        highest = _ZERO_BITS
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], BLOCK):
            numel = min(BLOCK, chunks[c, 1] + chunks[c, 2] - start)
            g, e = gradient + width * start, output + width * start
            if width == 2:
                _widen(g, wide.ctypes.data, numel)
                g = wide.ctypes.data
            z = rounded.ctypes.data if width == 2 or g == e else e
            top = _round_and_measure(g, z, numel, grid, key, offset + start, noise)
            finite = top if top < _INFINITE_BITS else _largest_finite(g, numel)
            highest = finite if finite > highest else highest
            if mask and saturated[start // MASKED]:
                _keep(z, mask + start, numel)
            if width == 2:
                _narrow(z, e, numel)
            elif z != e:
                _copy(z, e, numel)
        tops[c] = highest


@compiled
def _forward_alone(
    chunks: Any,
    source: int,
    output: int,
    bytes_in: int,
    bytes_out: int,
    mask: int,
    flags: int,
    formats: Any,
    keys: Any,
    drawn: Any,
    peaks: Any,
    site: int,
    numel: int,
    training: bool,
    replay: bool,
) -> bool:
    """The whole of a forward pass on one thread: a small one takes no longer than its call."""
    count = len(chunks)
    grid, key, offset, noise = _begin(formats, keys, drawn, site, bytes_out, numel, training, replay)
    tops, outside = np.empty(count, np.int32), np.empty(count, np.bool_)
    _forward_pass(
        0, count, chunks, source, output, bytes_in, bytes_out, mask, flags, grid, key, offset, noise, tops, outside
    )
    if training and not replay:
        _remember(tops, formats, peaks, site)
    return bool(outside.any())


@compiled
def _backward_alone(
    chunks: Any,
    gradient: int,
    output: int,
    width: int,
    mask: int,
    flags: int,
    formats: Any,
    keys: Any,
    drawn: Any,
    peaks: Any,
    site: int,
    numel: int,
) -> None:
    """The whole of a backward pass on one thread."""
    count = len(chunks)
    grid, key, offset, noise = _begin(formats, keys, drawn, site, width, numel, True, False)
    tops = np.empty(count, np.int32)
    _backward_pass(0, count, chunks, gradient, output, width, mask, flags, grid, key, offset, noise, tops)
    _remember(tops, formats, peaks, site)


@compiled
def _power_of_two(exponent: int) -> Any:
    return _from_bits(np.int32((exponent + 127) << 23))


@compiled
def _renew(
    formats: Any, drawn: Any, peaks: Any, ranges: Any, words: Any, otherwise: Any, mode: int, ended: bool
) -> None:
    for i in range(len(ranges)):
        if ended:
            drawn[i] = 0
            if peaks[i] > _ZERO:
                ranges[i] = max(peaks[i], ranges[i] * _DECAY)
            peaks[i] = _ZERO
        formats[i, :4], formats[i, 4] = otherwise[i], mode
        word = words[i]
        if word and ranges[i] > _ZERO:
            # 2^exponent is the smallest power of two above the range. Subnormal numbers end at the highest fraction.
            exponent, mantissa = (_bits(ranges[i]) >> 23) - 126, (_bits(ranges[i]) & 0x7FFFFF) | 0x3F000000
            fraction = word - 1 - exponent
            if _from_bits(np.int32(mantissa)) > _ONE - _power_of_two(-word):
                fraction -= 1
            fraction = min(max(fraction, word - 128, LOWEST_FRACTION), HIGHEST_FRACTION)
            half, unit = _power_of_two(word - 1), _power_of_two(max(word - 25, 0))
            formats[i, 0], formats[i, 1] = _power_of_two(fraction), _power_of_two(-fraction)
            formats[i, 2], formats[i, 3] = -half, half - unit


def _alone(chunks: Chunks) -> bool:
    return len(chunks.table) < 2 * CHUNKS_PER_THREAD or torch.get_num_threads() == 1


def forward(
    source: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int, *, training: bool, replay: bool
) -> bool:
    if source.dtype not in _BYTES or output.dtype not in _BYTES:
        return activation_torch.forward(source, output, mask, state, site, training=training, replay=replay)
    numel, width = source.numel(), _BYTES[output.dtype]
    if not numel:
        return False
    chunks = chunks_of((numel,))
    bits = 0 if mask is None else mask.data_ptr()
    tensors = source.data_ptr(), output.data_ptr(), _BYTES[source.dtype], width, bits, bits + numel
    if _alone(chunks):
        return _forward_alone(chunks.table, *tensors, *state.host, site, numel, training, replay)  # type: ignore[no-any-return]
    formats, keys, drawn, peaks = state.host
    grid, key, offset, noise = _begin(formats, keys, drawn, site, width, numel, training, replay)
    tops, outside = np.empty(len(chunks.table), np.int32), np.empty(len(chunks.table), np.bool_)
    run(_forward_pass, chunks, *tensors, grid, np.uint64(key), offset, noise, tops, outside)
    if training and not replay:
        _remember(tops, formats, peaks, site)
    return bool(outside.any())


def backward(gradient: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int) -> None:
    if gradient.dtype not in _BYTES or output.dtype != gradient.dtype:
        activation_torch.backward(gradient, output, mask, state, site)
        return
    numel, width = gradient.numel(), _BYTES[gradient.dtype]
    if not numel:
        return
    chunks = chunks_of((numel,))
    bits = 0 if mask is None else mask.data_ptr()
    tensors = gradient.data_ptr(), output.data_ptr(), width, bits, bits + numel
    if _alone(chunks):
        _backward_alone(chunks.table, *tensors, *state.host, site, numel)
        return
    formats, keys, drawn, peaks = state.host
    grid, key, offset, noise = _begin(formats, keys, drawn, site, width, numel, True, False)
    tops = np.empty(len(chunks.table), np.int32)
    run(_backward_pass, chunks, *tensors, grid, np.uint64(key), offset, noise, tops)
    _remember(tops, formats, peaks, site)


def renew(
    state: State,
    keys: NDArray[np.uint64],
    ranges: Tensor,
    words: Tensor,
    otherwise: Tensor,
    *,
    mode: int,
    ended: bool,
) -> None:
    formats, own_keys, drawn, peaks = state.host
    own_keys[:] = keys.view(np.int64)
    _renew(formats, drawn, peaks, ranges.numpy(), words.numpy(), otherwise.numpy(), mode, ended)
