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

from adapt.kernels import Rounding, Treatment
from adapt.kernels.numba_device import (
    accumulate_pass,
    add_pass,
    descend_pass,
    norm_pass,
    quantize_pass,
    restore_pass,
    store_pass,
)
from adapt.kernels.stream import present, require_layout, set_missing

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


def threads_for(chunks: Chunks) -> int:
    """As many threads as torch uses and the work is worth."""
    return max(min(torch.get_num_threads(), len(chunks.table) // CHUNKS_PER_THREAD), 1)


def run(kernel: Callable[..., None], chunks: Chunks, *arguments: Any) -> None:
    """Run a pass over all chunks, on as many threads as `threads_for` says."""
    global _pool
    count, threads = len(chunks.table), threads_for(chunks)
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


def _tables(rounding: Rounding) -> tuple[Any, ...]:
    grids, keys, offsets, stochastic = rounding
    return np.array(grids, np.float32), np.array(keys, np.uint64), np.array(offsets, np.int64), stochastic


def _gather(partial: NDArray[np.float64], chunks: Chunks, out: Tensor) -> None:
    """The sums of whole layers, from those of their chunks."""
    out.numpy()[:] = np.add.reduceat(partial, chunks.first)


def quantize_(
    sources: Sequence[Tensor], outputs: Sequence[Tensor], rounding: Rounding, figures: Tensor | None = None
) -> None:
    chunks = chunks_of(require_layout(torch.float32, sources=sources, outputs=outputs))
    partial = np.empty((len(chunks.table), 3))
    addresses = _addresses(sources), _addresses(outputs)
    run(quantize_pass, chunks, *addresses, *_tables(rounding), partial, figures is not None)
    if figures is not None:
        _gather(partial, chunks, figures)
    increment_version(outputs)


def store_(parameters: Sequence[Tensor], masters: Sequence[Tensor], rounding: Rounding, figures: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, parameters=parameters, masters=masters))
    partial = np.empty((len(chunks.table), 3))
    run(store_pass, chunks, _addresses(parameters), _addresses(masters), *_tables(rounding), partial)
    _gather(partial, chunks, figures)
    increment_version(parameters)


def squared_norms_(tensors: Sequence[Tensor | None], out: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, present=present(tensors), tensors=tensors))
    partial = np.empty(len(chunks.table))
    run(norm_pass, chunks, _addresses(tensors), partial)
    _gather(partial, chunks, out)
    set_missing(tensors, out)


def add_(
    sums: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    squared: Tensor,
    squared_sums: Tensor,
) -> None:
    lists = {"present": present(sums, gradients), "sums": sums, "gradients": gradients}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    partial = np.empty(len(chunks.table))
    run(add_pass, chunks, _addresses(sums), _addresses(gradients), np.array(squared.numpy(), np.float64), partial)
    _gather(partial, chunks, squared_sums)


def accumulate_(
    sums: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    squared: Tensor,
    squared_sums: Tensor,
) -> None:
    lists = {"present": present(sums, gradients), "sums": sums, "gradients": gradients}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    if threads_for(chunks) > 1:
        squared_norms_(gradients, squared)
        add_(sums, gradients, squared, squared_sums)
        return
    norms, partial = np.empty(len(chunks.table)), np.empty(len(chunks.table))
    run(accumulate_pass, chunks, _addresses(sums), _addresses(gradients), np.empty(len(sums)), norms, partial)
    _gather(norms, chunks, squared)
    _gather(partial, chunks, squared_sums)
    set_missing(gradients, squared)


def restore_(
    parameters: Sequence[Tensor] | None,
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    treatment: Treatment,
) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    chunks = chunks_of(require_layout(torch.float32, masters=masters, parameters=written, gradients=gradients))
    addresses = [_addresses(tensors) for tensors in (written, masters, gradients)]
    run(restore_pass, chunks, *addresses, *_treatment(treatment))
    if parameters is not None:
        increment_version(parameters)
    increment_version([gradient for gradient in gradients if gradient is not None])


def descend_(
    parameters: Sequence[Tensor],
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    buffers: Sequence[Tensor | None],
    treatment: Treatment,
    rates: NDArray[np.floating],
    rounding: Rounding,
    figures: Tensor,
) -> None:
    lists = {"parameters": parameters, "masters": masters, "gradients": gradients, "buffers": buffers}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    tables = *_treatment(treatment), np.array(rates, np.float32), *_tables(rounding)
    partial = np.empty((len(chunks.table), 3))
    run(descend_pass, chunks, *map(_addresses, lists.values()), *tables, partial)
    _gather(partial, chunks, figures)
    increment_version(parameters)


def _treatment(treatment: Treatment) -> tuple[Any, ...]:
    squared, l1, l2, normalize = treatment
    return np.array(squared.numpy(), np.float64), np.array(l1, np.float32), np.array(l2, np.float32), normalize
