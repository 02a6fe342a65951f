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
from torch import Tensor

from adapt.kernels import activation_torch
from adapt.kernels.activation import FROZEN, MASKED, NOISE, State
from adapt.kernels.numba_ import CHUNK, chunks_of, run
from adapt.kernels.numba_device import compiled, pointer, round_chunk

assert CHUNK == MASKED, "the chunks of a pass are those of a mask"

_BYTES = {torch.float32: 4, torch.bfloat16: 2}
_ZERO, _ZERO_BITS = np.float32(0), np.int32(0)
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
def _largest(address: int, numel: int) -> Any:
    """The bits of max|x|; not those of a finite number where an element is not finite."""
    x = numba.carray(pointer(address), numel)
    top = _ZERO_BITS
    for i in range(numel):
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
def _begin(formats: Any, keys: Any, drawn: Any, site: int, numel: int, training: bool, replay: bool) -> Any:
    """The key, the first element's place in the stream and whether to draw at all; moves on in the stream."""
    noise = training and formats[site, 4] == NOISE
    offset = drawn[site]
    if replay:
        offset -= numel
    elif training and formats[site, 4] != FROZEN:
        drawn[site] += numel
    return np.uint64(keys[site]), offset, noise


@compiled
def _remember(tops: Any, saturated: Any, formats: Any, peaks: Any, site: int, record: bool) -> bool:
    """Keep the largest finite magnitude; answer whether anything saturated."""
    top, outside = _bits(peaks[site]), False
    for c in range(len(tops)):
        outside |= saturated[c] != 0
        if top < tops[c] < _INFINITE_BITS:
            top = tops[c]
    if record and formats[site, 4] != FROZEN:
        peaks[site] = _from_bits(top)
    return outside


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
    grid: Any,
    key: Any,
    offset: int,
    noise: bool,
    tops: Any,
    saturated: Any,
) -> None:
    scratch = np.empty(MASKED, np.float32)
    minimum, maximum = grid[2] * grid[1], grid[3] * grid[1]
    # A grid without a scale leaves values as they are: all lie inside.
    limit = _LARGEST_BITS if grid[0] == _ZERO else _bits(maximum)
    for c in range(first, last):
        start, numel = chunks[c, 1], chunks[c, 2]
        x, y = source + bytes_in * start, output + bytes_out * start
        if bytes_in == 2:
            _widen(x, scratch.ctypes.data, numel)
            x = scratch.ctypes.data
        tops[c] = _largest(x, numel)
        saturated[c] = tops[c] > limit
        if mask and saturated[c]:
            _inside(x, mask + start, numel, minimum, maximum)
        if bytes_out == 2:
            round_chunk(x, scratch.ctypes.data, numel, grid, key, offset + start, noise)
            _narrow(scratch.ctypes.data, y, numel)
        else:
            round_chunk(x, y, numel, grid, key, offset + start, noise)


@compiled
def _backward_pass(
    first: int,
    last: int,
    chunks: Any,
    gradient: int,
    output: int,
    width: int,
    mask: int,
    saturated: Any,
    grid: Any,
    key: Any,
    offset: int,
    noise: bool,
    tops: Any,
) -> None:
    scratch = np.empty(MASKED, np.float32)
    for c in range(first, last):
        start, numel = chunks[c, 1], chunks[c, 2]
        g, e = gradient + width * start, output + width * start
        if width == 2:
            _widen(g, scratch.ctypes.data, numel)
            g = e = scratch.ctypes.data
        tops[c] = _largest(g, numel)
        round_chunk(g, e, numel, grid, key, offset + start, noise)
        if mask and saturated[c]:
            _keep(e, mask + start, numel)
        if width == 2:
            _narrow(scratch.ctypes.data, output + width * start, numel)


@compiled
def _grid(formats: Any, site: int, width: int) -> Any:
    """The row of a site; its upper bound is the largest that a type of this width holds. All zero for no site."""
    grid = np.zeros(4, np.float32)
    if site >= 0:
        grid[:] = formats[site, :4]
        if width == 2 and grid[0] != _ZERO:
            grid[3] = _from_bits(_bits(grid[3] * grid[1]) & _BFLOAT16_BITS) * grid[0]
    return grid


def forward(
    source: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int, *, training: bool, replay: bool
) -> bool:
    if source.dtype not in _BYTES or output.dtype not in _BYTES:
        return activation_torch.forward(source, output, mask, state, site, training=training, replay=replay)
    formats, keys, drawn, peaks = state.host
    numel, width = source.numel(), _BYTES[output.dtype]
    chunks = chunks_of((numel,))
    count = len(chunks.table)
    key, offset, noise = _begin(formats, keys, drawn, site, numel, training, replay)
    tops = np.empty(count, np.int32)
    saturated = np.empty(count, np.uint8) if mask is None else mask.numpy()[numel:]
    run(
        _forward_pass,
        chunks,
        source.data_ptr(),
        output.data_ptr(),
        _BYTES[source.dtype],
        width,
        0 if mask is None else mask.data_ptr(),
        _grid(formats, site, width),
        np.uint64(key),
        offset,
        noise,
        tops,
        saturated,
    )
    return _remember(tops, saturated, formats, peaks, site, training and not replay)  # type: ignore[no-any-return]


def backward(gradient: Tensor, output: Tensor, mask: Tensor | None, state: State, site: int) -> None:
    if gradient.dtype not in _BYTES or output.dtype != gradient.dtype:
        activation_torch.backward(gradient, output, mask, state, site)
        return
    formats, keys, drawn, peaks = state.host
    numel, width = gradient.numel(), _BYTES[gradient.dtype]
    chunks = chunks_of((numel,))
    key, offset, noise = 0, 0, False
    if site >= 0:
        key, offset, noise = _begin(formats, keys, drawn, site, numel, True, False)
    tops = np.empty(len(chunks.table), np.int32)
    saturated = np.empty(0, np.uint8) if mask is None else mask.numpy()[numel:]
    run(
        _backward_pass,
        chunks,
        gradient.data_ptr(),
        output.data_ptr(),
        width,
        0 if mask is None else mask.data_ptr(),
        saturated,
        _grid(formats, site, width),
        np.uint64(key),
        offset,
        noise,
        tops,
    )
    if site >= 0:
        _remember(tops, saturated[:0], formats, peaks, site, True)
