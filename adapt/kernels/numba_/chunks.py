"""Traverse memory in the CPU's passes: chunk by chunk, and large tensors on several threads.

Tensors are split into chunks that fit the first-level cache. A pass finishes one chunk before the next, so memory is
read and written once. The assignment of chunks to threads does not affect results: sums are kept per chunk and added in
the order of the chunks.
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

CHUNK = 2048
CHUNKS_PER_THREAD = 128
"""Waking a thread takes about 20 µs; this many chunks take about as long."""


class Chunks(NamedTuple):
    """The division of tensors into chunks."""

    table: NDArray[np.int64]
    """[chunks, 3]: layer, first element, number of elements."""
    ends: NDArray[np.int64]
    """[layers]: the index after the layer's last chunk."""


@lru_cache(maxsize=64)
def chunks_of(sizes: tuple[int, ...]) -> Chunks:
    """Split tensors of these sizes into chunks."""
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
    """Return the number of threads worth using for these chunks, at most as many as torch uses."""
    return max(min(torch.get_num_threads(), len(chunks.table) // CHUNKS_PER_THREAD), 1)


def run(kernel: Callable[..., None], chunks: Chunks, *arguments: Any) -> int:
    """Run a pass over all chunks on `threads_for(chunks)` threads, and return their number."""
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


def addresses_of(*lists: Sequence[Tensor | None]) -> NDArray[np.int64]:
    """Return the addresses of tensors, a row for each list; 0 for a missing tensor.

    Raises:
        RuntimeError: a tensor has no memory, as on the meta device.
    """
    table = np.array(
        [[0 if tensor is None else tensor.data_ptr() for tensor in tensors] for tensors in lists], np.int64
    )
    if not table.all() and any(t is not None and t.numel() and not t.data_ptr() for tensors in lists for t in tensors):
        raise RuntimeError(_WITHOUT_MEMORY)
    return table


def address_of(tensor: Tensor) -> int:
    """Return the address of a tensor.

    Raises:
        RuntimeError: it has no memory, as on the meta device.
    """
    address = tensor.data_ptr()
    if not address and tensor.numel():
        raise RuntimeError(_WITHOUT_MEMORY)
    return address


_WITHOUT_MEMORY = "a tensor has no values to round, as on the meta device or under FakeTensorMode: pass a real one"
