"""The kernels for CUDA, compiled by Triton: one launch per pass over all tensors, and a second one to add up sums.

`adapt.kernels.Kernels` documents the functions. Every program of a launch processes one block of one tensor. A table
with a row per tensor (addresses, keys, grids) is copied to the device once per call, asynchronously. Each program
writes its sums to a buffer, which a second launch adds up in the order of the blocks, so the results do not depend
on the order in which the programs ran. A CUDA graph must not capture these calls: it would replay the same table, and
with it the same keys.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from adapt.kernels.stream import OptionalTensors, Tensors, present, require_layout, set_missing
from adapt.kernels.triton_.weights_device import (
    add_pass,
    add_up,
    descend_pass,
    norm_pass,
    quantize_pass,
    restore_pass,
    store_pass,
)
from adapt.kernels.weights import Rounding, Treatment

BLOCK = 2048


class _Blocks(NamedTuple):
    number: int
    table: Tensor
    """int64 [number, 2]: the layer, and the block's index in it."""
    ends: Tensor
    """int64 [layers + 1]: the first block of each layer, and the number of blocks."""


@lru_cache(maxsize=64)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> _Blocks:
    counts = -(-np.array(sizes, np.int64) // BLOCK)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    layers = np.repeat(np.arange(len(sizes)), counts)
    table = np.stack([layers, np.arange(ends[-1]) - ends[layers]], axis=1)
    return _Blocks(int(ends[-1]), torch.from_numpy(table).to(device), torch.from_numpy(ends).to(device))


def _run(
    kernel: Any,
    tensors: Mapping[str, OptionalTensors],
    columns: Sequence[NDArray[np.int64]],
    arguments: Tensors = (),
    out: Tensor | None = None,
    **constants: bool,
) -> None:
    """Run one program of the kernel per block of the first list's tensors, and add up their sums in `out`.

    A tensor's row of the table holds its number of elements, the addresses, and then `columns`.
    """
    sizes = require_layout(torch.float32, **tensors)
    first = next(iter(tensors.values()))
    if not first:
        return
    device = cast(Tensor, first[0]).device
    blocks = _blocks(sizes, device)
    addresses = [
        np.array([0 if tensor is None else tensor.data_ptr() for tensor in row], np.int64) for row in tensors.values()
    ]
    table = torch.from_numpy(np.column_stack([np.array(sizes, np.int64), *addresses, *columns]))
    aligned = not any((column % 16).any() for column in addresses)
    on_device: AbstractContextManager[Any] = nullcontext()
    if device.type == "cuda":
        # A copy from pinned memory does not wait; torch keeps that memory until the copy is done.
        table, on_device = table.pin_memory().to(device, non_blocking=True), torch.cuda.device(device)
    with on_device:
        sums = None
        if out is not None:
            sums = torch.empty((blocks.number, *out.shape[1:]), dtype=torch.float64, device=device)
        options = {"WIDTH": table.shape[1], "ALIGNED": aligned, "BLOCK": BLOCK, **constants}
        if blocks.number:
            # No fused multiply-add, which would round once where the other back ends round twice.
            kernel[blocks.number,](blocks.table, table, *arguments, sums, **options, enable_fp_fusion=False)
        if out is not None:
            numbers = out.shape[1:].numel()
            strides = (out.stride(0), out.stride(1) if out.dim() > 1 else 0)
            add_up[len(sizes), numbers](blocks.ends, sums, out, *strides, COLUMNS=numbers, LANES=256)


def _rounding_columns(rounding: Rounding) -> list[NDArray[np.int64]]:
    keys = np.array(rounding.keys, np.uint64).view(np.int64)
    return [np.array(rounding.offsets, np.int64), keys, _bits(rounding.grids)]


def _bits(values: Any) -> NDArray[np.int64]:
    """Return rows of an even number of float32 values as half as many 64-bit columns."""
    return np.array(values, np.float32, order="C").view(np.int64)


def quantize_(sources: Tensors, outputs: Tensors, rounding: Rounding, figures: Tensor | None = None) -> None:
    tensors = {"sources": sources, "outputs": outputs}
    _run(quantize_pass, tensors, _rounding_columns(rounding), out=figures, STOCHASTIC=rounding.stochastic)
    increment_version(outputs)


def store_(parameters: Tensors, masters: Tensors, rounding: Rounding, figures: Tensor) -> None:
    tensors = {"parameters": parameters, "masters": masters}
    _run(store_pass, tensors, _rounding_columns(rounding), out=figures, STOCHASTIC=rounding.stochastic)
    increment_version(parameters)


def squared_norms_(tensors: OptionalTensors, out: Tensor) -> None:
    _run(norm_pass, {"present": present(tensors), "tensors": tensors}, [], out=out)
    set_missing(tensors, out)


def add_(sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
    tensors = {"present": present(sums, gradients), "sums": sums, "gradients": gradients}
    _run(add_pass, tensors, [], [squared.contiguous()], squared_sums)


def accumulate_(sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
    squared_norms_(gradients, squared)
    add_(sums, gradients, squared, squared_sums)


def restore_(parameters: Tensors | None, masters: Tensors, gradients: OptionalTensors, treatment: Treatment) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    tensors = {"masters": masters, "parameters": written, "gradients": gradients}
    squared = treatment.squared.contiguous()
    _run(restore_pass, tensors, [_penalties(treatment)], [squared], NORMALIZE=treatment.normalize)
    if parameters is not None:
        increment_version(parameters)
    increment_version([gradient for gradient in gradients if gradient is not None])


def descend_(
    parameters: Tensors,
    masters: Tensors,
    gradients: OptionalTensors,
    buffers: OptionalTensors,
    treatment: Treatment,
    rates: NDArray[np.floating],
    rounding: Rounding,
    figures: Tensor,
) -> None:
    tensors = {"parameters": parameters, "masters": masters, "gradients": gradients, "buffers": buffers}
    columns = [_penalties(treatment), _bits(rates), *_rounding_columns(rounding)]
    constants = {"NORMALIZE": treatment.normalize, "STOCHASTIC": rounding.stochastic}
    _run(descend_pass, tensors, columns, [treatment.squared.contiguous()], figures, **constants)
    increment_version(parameters)


def _penalties(treatment: Treatment) -> NDArray[np.int64]:
    return _bits(np.stack([treatment.l1, treatment.l2], axis=-1))
