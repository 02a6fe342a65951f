"""The kernels for the CPU, compiled by Numba: one call per pass over all tensors, whatever their number.

`adapt.kernels.Kernels` says what each function does. The tensors are cut into chunks that fit the first-level cache;
a pass takes one chunk at a time through all that it does, so memory is read and written once, and large passes share
the chunks among `torch.get_num_threads()` threads. Sums are kept per chunk and added in order of the chunks, so no
result depends on the number of threads.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from adapt.kernels.numba_device import norm_pass, quantize_pass, restore_pass, store_pass
from adapt.kernels.stream import require_layout

CHUNK = 2048
CHUNKS_PER_THREAD = 128
"""Waking a thread costs some 20 µs; this many chunks take about as long."""


class Chunks(NamedTuple):
    table: NDArray[np.int64]
    """[chunks, 3]: layer, first element, number of elements."""
    first: NDArray[np.int64]
    """[layers]: the layer's first chunk. Every layer has one, if only of no elements."""


@lru_cache(maxsize=64)
def chunks_of(sizes: tuple[int, ...]) -> Chunks:
    """How tensors of these sizes are cut."""
    numel = np.array(sizes, np.int64)
    counts = np.maximum(-(-numel // CHUNK), 1)
    first = np.cumsum(counts) - counts
    layer = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(counts.sum()) - first[layer]) * CHUNK
    return Chunks(np.stack([layer, start, np.minimum(numel[layer] - start, CHUNK)], axis=1), first)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., None], chunks: Chunks, *arguments: Any) -> None:
    """Run a pass over all chunks, on as many threads as torch uses and the work is worth."""
    global _pool
    count = len(chunks.table)
    threads = max(min(torch.get_num_threads(), count // CHUNKS_PER_THREAD), 1)
    ends = [count * (thread + 1) // threads for thread in range(threads)]
    others = []
    if threads > 1:
        _pool = _pool or ThreadPoolExecutor(os.cpu_count(), "adapt")
        others = [_pool.submit(kernel, a, b, chunks.table, *arguments) for a, b in pairwise(ends)]
    kernel(0, ends[0], chunks.table, *arguments)
    for other in others:
        other.result()


def _addresses(tensors: Sequence[Tensor | None]) -> NDArray[np.int64]:
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], np.int64)


def quantize_(
    sources: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grids: NDArray[np.floating],
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    nonzeros: Tensor | None = None,
    *,
    stochastic: bool,
) -> None:
    chunks = chunks_of(require_layout(torch.float32, sources=sources, outputs=outputs))
    tables = np.array(grids, np.float32), np.array(keys, np.uint64), np.array(offsets, np.int64)
    counts = np.empty(len(chunks.table))
    run(quantize_pass, chunks, _addresses(sources), _addresses(outputs), *tables, counts, stochastic)
    if nonzeros is not None:
        nonzeros.numpy()[:] = np.add.reduceat(counts, chunks.first)
    increment_version(outputs)


def store_(
    parameters: Sequence[Tensor],
    masters: Sequence[Tensor],
    grids: NDArray[np.floating],
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    nonzeros: Tensor,
    *,
    stochastic: bool,
) -> None:
    chunks = chunks_of(require_layout(torch.float32, parameters=parameters, masters=masters))
    tables = np.array(grids, np.float32), np.array(keys, np.uint64), np.array(offsets, np.int64)
    counts = np.empty(len(chunks.table))
    run(store_pass, chunks, _addresses(parameters), _addresses(masters), *tables, counts, stochastic)
    nonzeros.numpy()[:] = np.add.reduceat(counts, chunks.first)
    increment_version(parameters)


def squared_norms_(tensors: Sequence[Tensor], out: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, tensors=tensors))
    partial = np.empty(len(chunks.table))
    run(norm_pass, chunks, _addresses(tensors), partial)
    out.numpy()[:] = np.add.reduceat(partial, chunks.first)


def restore_(
    parameters: Sequence[Tensor] | None,
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    sums: Sequence[Tensor | None],
    squared: Tensor,
    l1: Sequence[float] | NDArray[np.floating],
    l2: Sequence[float] | NDArray[np.floating],
    statistics: Tensor,
    *,
    normalize: bool,
) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    chunks = chunks_of(
        require_layout(torch.float32, masters=masters, parameters=written, gradients=gradients, sums=sums)
    )
    addresses = [_addresses(tensors) for tensors in (written, masters, gradients, sums)]
    tables = np.array(squared.numpy(), np.float64), np.array(l1, np.float32), np.array(l2, np.float32)
    partial = np.empty((len(chunks.table), 3))
    run(restore_pass, chunks, *addresses, *tables, partial, normalize)
    statistics.numpy()[:] = np.add.reduceat(partial, chunks.first)
    if parameters is not None:
        increment_version(parameters)
    increment_version([gradient for gradient in gradients if gradient is not None])
