"""Batch normalisation of bfloat16 activations on the CPU, by Numba: two passes forward, two backward.

Activations lie in memory as rows of C channels. A block consists of as many whole rows as fit in 1024 elements, so that
the inner loops are long whatever C is; parameters are repeated to the length of a block. Sums are float32 within a
chunk and float64 over chunks, in the order of the chunks, so no result depends on the number of threads.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.numba_.bits import narrowed, widened
from adapt.kernels.numba_.chunks import Chunks, run
from adapt.kernels.numba_.compiler import array, compiled

_ZERO = np.float32(0)

BLOCK, CHUNK = 1024, 16384


@compiled
def _moments_pass(first: int, last: int, chunks: Any, address: int, block: int, pivot: Any, sums: Any) -> None:
    """Σ(x − pivot) and Σ(x − pivot)² of every chunk: first for each position in a block, then for each channel."""
    ones, squares = np.empty(block, np.float32), np.empty(block, np.float32)
    for c in range(first, last):
        ones[:], squares[:] = _ZERO, _ZERO
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], block):
            numel = min(block, chunks[c, 1] + chunks[c, 2] - start)
            x = array(address + 2 * start, numel, np.uint16)
            for i in range(numel):
                d = widened(x[i]) - pivot[i]
                ones[i] += d
                squares[i] += d * d
        _gather(ones, squares, sums, c)


@compiled
def _products_pass(
    first: int, last: int, chunks: Any, error: int, address: int, block: int, pivot: Any, sums: Any
) -> None:
    """Σg and Σg·(x − pivot) of every chunk, likewise."""
    ones, products = np.empty(block, np.float32), np.empty(block, np.float32)
    for c in range(first, last):
        ones[:], products[:] = _ZERO, _ZERO
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], block):
            numel = min(block, chunks[c, 1] + chunks[c, 2] - start)
            g = array(error + 2 * start, numel, np.uint16)
            x = array(address + 2 * start, numel, np.uint16)
            for i in range(numel):
                e = widened(g[i])
                ones[i] += e
                products[i] += e * (widened(x[i]) - pivot[i])
        _gather(ones, products, sums, c)


@compiled
def _gather(one: Any, other: Any, sums: Any, c: int) -> None:
    """sums[c] ← the sums over a block's rows, for each channel."""
    channels = sums.shape[2]
    sums[c] = 0.0
    for start in range(0, len(one), channels):
        for k in range(channels):
            sums[c, 0, k] += one[start + k]
            sums[c, 1, k] += other[start + k]


@compiled
def _scale_pass(first: int, last: int, chunks: Any, source: int, output: int, block: int, a: Any, b: Any) -> None:
    """y ← a·x + b."""
    for c in range(first, last):
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], block):
            numel = min(block, chunks[c, 1] + chunks[c, 2] - start)
            x = array(source + 2 * start, numel, np.uint16)
            y = array(output + 2 * start, numel, np.uint16)
            for i in range(numel):
                y[i] = narrowed(widened(x[i]) * a[i] + b[i])


@compiled
def _combine_pass(
    first: int, last: int, chunks: Any, error: int, address: int, output: int, block: int, a: Any, b: Any, d: Any
) -> None:
    """y ← a·g + b·x + d."""
    for c in range(first, last):
        for start in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2], block):
            numel = min(block, chunks[c, 1] + chunks[c, 2] - start)
            g = array(error + 2 * start, numel, np.uint16)
            x = array(address + 2 * start, numel, np.uint16)
            y = array(output + 2 * start, numel, np.uint16)
            for i in range(numel):
                y[i] = narrowed(widened(g[i]) * a[i] + (widened(x[i]) * b[i] + d[i]))


@lru_cache(maxsize=64)
def _blocks_and_chunks(numel: int, channels: int) -> tuple[int, Chunks]:
    """Return the elements in a block, and the chunks, each of which consists of whole blocks."""
    block = channels * max(BLOCK // channels, 1)
    span = block * max(CHUNK // block, 1)
    start = np.arange(0, numel, span)
    table = np.stack([np.zeros_like(start), start, np.minimum(numel - start, span)], axis=1)
    return block, Chunks(table, np.zeros(1, np.int64))


def _repeated(values: NDArray[np.floating], block: int) -> NDArray[np.float32]:
    return np.tile(values.astype(np.float32), block // len(values))


def moments(x: Tensor, pivot: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the biased variance of each channel.

    Args:
        x: bfloat16, rows of C channels in memory.
        pivot: float32 [C], estimates of the means, which prevent cancellation.
    """
    numel, channels = x.numel(), len(pivot)
    block, chunks = _blocks_and_chunks(numel, channels)
    sums = np.empty((len(chunks.table), 2, channels))
    run(_moments_pass, chunks, x.data_ptr(), block, _repeated(pivot, block), sums)
    first, second = sums.sum(axis=0) * (channels / numel)
    return pivot + first, np.maximum(second - first**2, 0)


def scale(x: Tensor, output: Tensor, a: NDArray[np.floating], b: NDArray[np.floating]) -> None:
    """output ← a·x + b, with a and b [C], computed in float32 and rounded once."""
    block, chunks = _blocks_and_chunks(x.numel(), len(a))
    run(_scale_pass, chunks, x.data_ptr(), output.data_ptr(), block, _repeated(a, block), _repeated(b, block))


def product_sums(
    error: Tensor, x: Tensor, pivot: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Σg and Σg·(x − pivot) of each channel; g and x have the same memory layout."""
    block, chunks = _blocks_and_chunks(x.numel(), len(pivot))
    sums = np.empty((len(chunks.table), 2, len(pivot)))
    run(_products_pass, chunks, error.data_ptr(), x.data_ptr(), block, _repeated(pivot, block), sums)
    first, second = sums.sum(axis=0)
    return first, second


def combine(
    error: Tensor,
    x: Tensor,
    output: Tensor,
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    d: NDArray[np.floating],
) -> None:
    """output ← a·g + b·x + d, with a, b and d [C], in float32 and rounded once. The output may be the error."""
    block, chunks = _blocks_and_chunks(x.numel(), len(a))
    tiles = (_repeated(values, block) for values in (a, b, d))
    run(_combine_pass, chunks, error.data_ptr(), x.data_ptr(), output.data_ptr(), block, *tiles)
