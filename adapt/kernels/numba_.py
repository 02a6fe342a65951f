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
from adapt.kernels.numba_device import descend_pass, quantize_pass, restore_pass, store_pass
from adapt.kernels.numba_sums import accumulate_pass, add_pass, add_up, norm_pass
from adapt.kernels.stream import present, require_layout, set_missing

CHUNK = 2048
CHUNKS_PER_THREAD = 128
"""Waking a thread costs some 20 µs; this many chunks take about as long."""


class Chunks(NamedTuple):
    table: NDArray[np.int64]
    """[chunks, 3]: layer, first element, number of elements."""
    ends: NDArray[np.int64]
    """[layers]: the chunk after the layer's last."""


@lru_cache(maxsize=64)
def chunks_of(sizes: tuple[int, ...]) -> Chunks:
    """How tensors of these sizes are cut."""
    numel = np.array(sizes, np.int64)
    counts = -(-numel // CHUNK)
    ends = np.cumsum(counts)
    layer = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(counts.sum()) - (ends - counts)[layer]) * CHUNK
    return Chunks(np.stack([layer, start, np.minimum(numel[layer] - start, CHUNK)], axis=1), ends)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def threads_for(chunks: Chunks) -> int:
    """As many threads as torch uses and the work is worth."""
    return max(min(torch.get_num_threads(), len(chunks.table) // CHUNKS_PER_THREAD), 1)


def run(kernel: Callable[..., None], chunks: Chunks, *arguments: Any) -> int:
    """Run a pass over all chunks, on as many threads as `threads_for` says; answers how many."""
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
    return threads


def _measure(out: Tensor, kernel: Callable[..., None], chunks: Chunks, *arguments: Any) -> None:
    """Run a pass that measures each chunk, and add up into `out`, float64 [layers] or [layers, figures]."""
    figures = _columns(out)
    partial = np.empty((len(chunks.table), figures.shape[1]))
    if run(kernel, chunks, *arguments, partial, chunks.ends, figures) > 1:
        add_up(partial, chunks.ends, figures)


def _columns(out: Tensor) -> NDArray[np.float64]:
    figures = out.numpy()
    return figures if figures.ndim == 2 else figures[:, None]


def addresses_of(*lists: Sequence[Tensor | None]) -> NDArray[np.int64]:
    """A row for each list; 0 where there is no tensor."""
    return np.array([[0 if tensor is None else tensor.data_ptr() for tensor in tensors] for tensors in lists], np.int64)


def _tables(rounding: Rounding) -> tuple[Any, ...]:
    grids, keys, offsets, stochastic = rounding
    return np.asarray(grids, np.float32), np.asarray(keys, np.uint64), np.asarray(offsets, np.int64), stochastic


_NOTHING = np.empty((0, 3))


def quantize_(
    sources: Sequence[Tensor], outputs: Sequence[Tensor], rounding: Rounding, figures: Tensor | None = None
) -> None:
    chunks = chunks_of(require_layout(torch.float32, sources=sources, outputs=outputs))
    arguments = *addresses_of(sources, outputs), *_tables(rounding)
    if figures is None:
        run(quantize_pass, chunks, *arguments, _NOTHING, chunks.ends, _NOTHING)
    else:
        _measure(figures, quantize_pass, chunks, *arguments)
    increment_version(outputs)


def store_(parameters: Sequence[Tensor], masters: Sequence[Tensor], rounding: Rounding, figures: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, parameters=parameters, masters=masters))
    _measure(figures, store_pass, chunks, *addresses_of(parameters, masters), *_tables(rounding))
    increment_version(parameters)


def squared_norms_(tensors: Sequence[Tensor | None], out: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, present=present(tensors), tensors=tensors))
    _measure(out, norm_pass, chunks, *addresses_of(tensors))
    set_missing(tensors, out)


def add_(
    sums: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    squared: Tensor,
    squared_sums: Tensor,
) -> None:
    lists = {"present": present(sums, gradients), "sums": sums, "gradients": gradients}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    _measure(squared_sums, add_pass, chunks, *addresses_of(sums, gradients), squared.numpy())


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
    norms = squared.numpy(), _columns(squared_sums)
    accumulate_pass(chunks.table, *addresses_of(sums, gradients), chunks.ends, *norms)
    set_missing(gradients, squared)


def restore_(
    parameters: Sequence[Tensor] | None,
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    treatment: Treatment,
) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    chunks = chunks_of(require_layout(torch.float32, masters=masters, parameters=written, gradients=gradients))
    run(restore_pass, chunks, *addresses_of(written, masters, gradients), *_treatment(treatment))
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
    tables = *_treatment(treatment), np.asarray(rates, np.float32), *_tables(rounding)
    _measure(figures, descend_pass, chunks, *addresses_of(*lists.values()), *tables)
    increment_version(parameters)


def _treatment(treatment: Treatment) -> tuple[Any, ...]:
    squared, l1, l2, normalize = treatment
    return squared.numpy(), np.asarray(l1, np.float32), np.asarray(l2, np.float32), normalize
