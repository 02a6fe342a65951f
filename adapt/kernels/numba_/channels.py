"""The passes over channelwise weights for the CPU, compiled by Numba: one call each way for all tensors of a network.

`adapt.kernels.channels.ChannelKernels` documents them. If a channel's elements are contiguous, as in linear layers and
convolutions, a pass processes one run at a time with the channel's row in registers. If neighbouring elements belong to
different channels, as in an embedding whose channels are its columns, it reads the table's columns along with the
elements.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from adapt.kernels.channels import Layout
from adapt.kernels.numba_.chunks import CHUNK, Chunks, addresses_of, run
from adapt.kernels.numba_.compiler import compiled, floats
from adapt.kernels.numba_.learned_steps import (
    BLOCK,
    SIGNED,
    backward_block,
    backward_columns,
    round_block,
    round_columns,
)
from adapt.kernels.stream import OptionalTensors, Tensors, require_layout


@lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...], layouts: tuple[Layout, ...]) -> Chunks:
    """Split tensors into pieces of about CHUNK elements that share no channel, so that threads can add to the sums."""
    table = []
    for i, (numel, layout) in enumerate(zip(sizes, layouts, strict=True)):
        once = numel == layout.stride * layout.channels and layout.groups == 1
        piece = max(CHUNK // layout.stride, 1) * layout.stride if once else max(numel, 1)
        table += [(i, start, min(piece, numel - start)) for start in range(0, numel, piece)]
    layers = np.array([i for i, *_ in table], np.int64)
    return Chunks(np.array(table, np.int64).reshape(-1, 3), np.searchsorted(layers, np.arange(len(sizes)), "right"))


@compiled
def _row_of(element: int, layout: Any) -> Any:
    channel = (element // layout[1]) % layout[2]
    return layout[0] + channel + layout[2] * ((element // layout[3]) % layout[4])


@compiled
def _has_columns(layout: Any) -> Any:
    """Return whether neighbouring elements belong to neighbouring channels."""
    return layout[1] == 1 and layout[2] > 1 and layout[3] % layout[2] == 0


@compiled
def _length_of_runs(layout: Any) -> Any:
    """Return the number of consecutive elements that belong to one channel."""
    return layout[1] if layout[4] == 1 else min(layout[1], layout[3])


@compiled
def _quantize_pass(first: int, last: int, chunks: Any, sources: Any, outputs: Any, layouts: Any, columns: Any) -> None:
    for c in range(first, last):
        i, begin, end = chunks[c, 0], chunks[c, 1], chunks[c, 1] + chunks[c, 2]
        layout, columnwise = layouts[i], _has_columns(layouts[i])
        run = layout[2] if columnwise else _length_of_runs(layout)
        for start in range(begin, end, run):
            source, output, row = sources[i] + 4 * start, outputs[i] + 4 * start, _row_of(start, layout)
            if columnwise:
                round_columns(source, output, run, columns, row)
            else:
                round_block(source, output, run, columns[:, row])


@compiled
def _back_pass(
    first: int,
    last: int,
    chunks: Any,
    gradients: Any,
    masters: Any,
    squared: Any,
    layouts: Any,
    columns: Any,
    signed: bool,
    scaling: int,
    delta: Any,
    sums: Any,
) -> None:
    f, held = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for c in range(first, last):
        i, begin, end = chunks[c, 0], chunks[c, 1], chunks[c, 1] + chunks[c, 2]
        if gradients[i] == 0:
            continue
        if not np.isfinite(squared[i]):
            floats(gradients[i] + 4 * begin, end - begin)[:] = np.float32(0)
            continue
        layout, columnwise = layouts[i], _has_columns(layouts[i])
        run = layout[2] if columnwise else _length_of_runs(layout)
        for start in range(begin, end, run):
            row = _row_of(start, layout)
            for at in range(0, run, BLOCK):
                numel = min(BLOCK, run - at)
                g = floats(gradients[i] + 4 * (start + at), numel)
                x = floats(masters[i] + 4 * (start + at), numel)
                if columnwise:
                    backward_columns(g, x, f, numel, columns, row + at, signed, scaling, delta, sums)
                else:
                    # Through a buffer in the cache, because loops over overlapping arrays are not vectorised.
                    backward_block(g, x, held, f, numel, columns[:, row], signed, scaling, delta, sums, row)
                    g[:] = held[:numel]


def quantize_(sources: Tensors, outputs: Tensors, rows: Tensor, layouts: Sequence[Layout]) -> None:
    sizes = require_layout(torch.float32, sources=sources, outputs=outputs)
    addresses = addresses_of(sources, outputs)
    run(_quantize_pass, _chunks(sizes, tuple(layouts)), *addresses, *_tables(rows, layouts))
    increment_version(outputs)


def back_(
    gradients: OptionalTensors,
    masters: Tensors,
    squared: Tensor,
    rows: Tensor,
    layouts: Sequence[Layout],
    sums: Tensor | None,
    *,
    scaling: int,
    delta: float,
) -> None:
    sizes = require_layout(torch.float32, masters=masters, gradients=gradients)
    figures = np.zeros((len(rows), 4)) if sums is None else sums.numpy()
    tables = squared.numpy(), *_tables(rows, layouts), scaling in SIGNED, scaling, np.float32(delta), figures
    run(_back_pass, _chunks(sizes, tuple(layouts)), *addresses_of(gradients, masters), *tables)
    increment_version([gradient for gradient in gradients if gradient is not None])


def _tables(rows: Tensor, layouts: Sequence[Layout]) -> tuple[Any, Any]:
    """Return the layouts as an array, and the table transposed."""
    return np.array(layouts, np.int64).reshape(-1, 5), np.ascontiguousarray(rows.numpy().T)
