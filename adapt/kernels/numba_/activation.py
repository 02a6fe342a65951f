"""The passes over activations for the CPU, compiled by Numba: the tensor is read once, chunk by chunk.

`adapt.kernels.activation.ActivationKernels` documents the functions.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.activation import DECAY, FROZEN, SiteTables
from adapt.kernels.numba_.activation_device import backward_pass, begin, forward_pass, keep_sample, remember
from adapt.kernels.numba_.bits import bits_of, from_bits
from adapt.kernels.numba_.chunks import CHUNKS_PER_THREAD, Chunks, address_of, chunks_of, run
from adapt.kernels.numba_.compiler import compiled
from adapt.kernels.torch_ import activation as activation_torch
from adapt.numerics import HIGHEST_FRACTION, LOWEST_FRACTION

_BYTES = {torch.float32: 4, torch.bfloat16: 2}
_ZERO, _ONE = np.float32(0), np.float32(1)
_DECAY = np.float32(DECAY)


@compiled
def _forward_on_one_thread(
    chunks: Any,
    source: int,
    output: int,
    width_in: int,
    width_out: int,
    mask: int,
    flags: int,
    formats: Any,
    keys: Any,
    drawn: Any,
    peaks: Any,
    samples: Any,
    stride: int,
    site: int,
    numel: int,
    training: bool,
    replay: bool,
) -> bool:
    """Run a whole forward pass in one compiled call: several calls would take longer than a small pass itself."""
    count = len(chunks)
    grid, key, offset, noise = begin(formats, keys, drawn, site, width_out, numel, training, replay)
    if training and not replay:
        keep_sample(source, width_in, numel, stride, formats, samples, site)
    tops, outside = np.empty(count, np.int32), np.empty(count, np.bool_)
    forward_pass(
        0, count, chunks, source, output, width_in, width_out, mask, flags, grid, key, offset, noise, tops, outside
    )
    if training and not replay:
        remember(tops, formats, peaks, site)
    return bool(outside.any())


@compiled
def _backward_on_one_thread(
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
    """Run a whole backward pass in one compiled call."""
    count = len(chunks)
    grid, key, offset, noise = begin(formats, keys, drawn, site, width, numel, True, False)
    tops = np.empty(count if site >= 0 else 0, np.int32)
    backward_pass(0, count, chunks, gradient, output, width, mask, flags, grid, key, offset, noise, tops)
    remember(tops, formats, peaks, site)


def _is_small(chunks: Chunks) -> bool:
    return len(chunks.table) < 2 * CHUNKS_PER_THREAD or torch.get_num_threads() == 1


def forward(
    source: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int, *, training: bool, replay: bool
) -> bool:
    if source.dtype not in _BYTES or output.dtype not in _BYTES:
        return activation_torch.forward(source, output, mask, sites, site, training=training, replay=replay)
    numel, width = source.numel(), _BYTES[output.dtype]
    if not numel:
        return False
    chunks = chunks_of((numel,))
    bits = 0 if mask is None else mask.data_ptr()
    tensors = address_of(source), address_of(output), _BYTES[source.dtype], width, bits, bits + numel
    if _is_small(chunks):
        return _forward_on_one_thread(  # type: ignore[no-any-return]
            chunks.table, *tensors, *sites.host, sites.sample_stride(numel), site, numel, training, replay
        )
    formats, keys, drawn, peaks, samples = sites.host
    grid, key, offset, noise = begin(formats, keys, drawn, site, width, numel, training, replay)
    if training and not replay:
        keep_sample(tensors[0], tensors[2], numel, sites.sample_stride(numel), formats, samples, site)
    tops, outside = np.empty(len(chunks.table), np.int32), np.empty(len(chunks.table), np.bool_)
    run(forward_pass, chunks, *tensors, grid, np.uint64(key), offset, noise, tops, outside)
    if training and not replay:
        remember(tops, formats, peaks, site)
    return bool(outside.any())


def backward(gradient: Tensor, output: Tensor, mask: Tensor | None, sites: SiteTables, site: int) -> None:
    if gradient.dtype not in _BYTES or output.dtype != gradient.dtype:
        activation_torch.backward(gradient, output, mask, sites, site)
        return
    numel, width = gradient.numel(), _BYTES[gradient.dtype]
    if not numel:
        return
    chunks = chunks_of((numel,))
    bits = 0 if mask is None else mask.data_ptr()
    tensors = address_of(gradient), address_of(output), width, bits, bits + numel
    tables = sites.host[:4]
    if _is_small(chunks):
        _backward_on_one_thread(chunks.table, *tensors, *tables, site, numel)
        return
    formats, keys, drawn, peaks = tables
    grid, key, offset, noise = begin(formats, keys, drawn, site, width, numel, True, False)
    tops = np.empty(len(chunks.table) if site >= 0 else 0, np.int32)
    run(backward_pass, chunks, *tensors, grid, np.uint64(key), offset, noise, tops)
    remember(tops, formats, peaks, site)


@compiled
def _power_of_two(exponent: int) -> Any:
    return from_bits(np.int32((exponent + 127) << 23))


@compiled
def _renew(
    formats: Any,
    drawn: Any,
    peaks: Any,
    ranges: Any,
    shifts: Any,
    words: Any,
    otherwise: Any,
    mode: int,
    ended: bool,
    sampled: bool,
) -> None:
    for i in range(len(ranges)):
        if ended:
            drawn[i] = 0
            if peaks[i] > _ZERO:
                ranges[i] = max(peaks[i], ranges[i] * _DECAY)
            peaks[i] = _ZERO
        formats[i, :4], formats[i, 4] = otherwise[i], mode
        word = words[i]
        formats[i, 5] = sampled and word > 0 and mode != FROZEN
        if word and ranges[i] > _ZERO:
            # 2^exponent is the smallest power of two above the range. Subnormal ranges get the highest fraction length.
            exponent, mantissa = (bits_of(ranges[i]) >> 23) - 126, (bits_of(ranges[i]) & 0x7FFFFF) | 0x3F000000
            fraction = word - 1 - exponent
            if from_bits(np.int32(mantissa)) > _ONE - _power_of_two(-word):
                fraction -= 1
            fraction = min(max(fraction, word - 128, LOWEST_FRACTION) + shifts[i], HIGHEST_FRACTION)
            half, unit = _power_of_two(word - 1), _power_of_two(max(word - 25, 0))
            formats[i, 0], formats[i, 1] = _power_of_two(fraction), _power_of_two(-fraction)
            formats[i, 2], formats[i, 3] = -half, half - unit


def renew(
    sites: SiteTables,
    keys: NDArray[np.uint64],
    ranges: Tensor,
    shifts: Tensor,
    words: Tensor,
    otherwise: Tensor,
    *,
    mode: int,
    ended: bool,
    sampled: bool,
) -> None:
    formats, own_keys, drawn, peaks, _ = sites.host
    own_keys[:] = keys.view(np.int64)
    settings = (tensor.numpy() for tensor in (ranges, shifts, words, otherwise))
    _renew(formats, drawn, peaks, *settings, mode, ended, sampled)
