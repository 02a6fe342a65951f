"""The passes over weights and gradients for the CPU, compiled by Numba: one call for all tensors of a network.

`adapt.kernels.Kernels` documents the functions, `adapt.kernels.numba_.chunks` how memory is traversed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from adapt.kernels.numba_.chunks import Chunks, addresses_of, chunks_of, run, threads_for
from adapt.kernels.numba_.sums import accumulate_pass, add_pass, add_up, norm_pass
from adapt.kernels.numba_.weights_device import descend_pass, quantize_pass, restore_pass, store_pass
from adapt.kernels.stream import OptionalTensors, Tensors, present, require_layout, set_missing
from adapt.kernels.weights import Rounding, Treatment


def _measure(out: Tensor, kernel: Callable[..., None], chunks: Chunks, *arguments: Any) -> None:
    """Run a pass that measures each chunk, and add up the layers' chunks in `out`, float64 [layers] or [layers, n]."""
    figures = _columns(out)
    partial = np.empty((len(chunks.table), figures.shape[1]))
    if run(kernel, chunks, *arguments, partial, chunks.ends, figures) > 1:
        add_up(partial, chunks.ends, figures)


def _columns(out: Tensor) -> NDArray[np.float64]:
    figures = out.numpy()
    return figures if figures.ndim == 2 else figures[:, None]


def _tables(rounding: Rounding) -> tuple[Any, ...]:
    grids, keys, offsets, stochastic = rounding
    return np.asarray(grids, np.float32), np.asarray(keys, np.uint64), np.asarray(offsets, np.int64), stochastic


_NOTHING = np.empty((0, 3))


def quantize_(sources: Tensors, outputs: Tensors, rounding: Rounding, figures: Tensor | None = None) -> None:
    chunks = chunks_of(require_layout(torch.float32, sources=sources, outputs=outputs))
    arguments = *addresses_of(sources, outputs), *_tables(rounding)
    if figures is None:
        run(quantize_pass, chunks, *arguments, _NOTHING, chunks.ends, _NOTHING)
    else:
        _measure(figures, quantize_pass, chunks, *arguments)
    increment_version(outputs)


def store_(parameters: Tensors, masters: Tensors, rounding: Rounding, figures: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, parameters=parameters, masters=masters))
    _measure(figures, store_pass, chunks, *addresses_of(parameters, masters), *_tables(rounding))
    increment_version(parameters)


def squared_norms_(tensors: OptionalTensors, out: Tensor) -> None:
    chunks = chunks_of(require_layout(torch.float32, present=present(tensors), tensors=tensors))
    _measure(out, norm_pass, chunks, *addresses_of(tensors))
    set_missing(tensors, out)


def add_(sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
    lists = {"present": present(sums, gradients), "sums": sums, "gradients": gradients}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    _measure(squared_sums, add_pass, chunks, *addresses_of(sums, gradients), squared.numpy())


def accumulate_(sums: OptionalTensors, gradients: OptionalTensors, squared: Tensor, squared_sums: Tensor) -> None:
    lists = {"present": present(sums, gradients), "sums": sums, "gradients": gradients}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    if threads_for(chunks) > 1:
        squared_norms_(gradients, squared)
        add_(sums, gradients, squared, squared_sums)
        return
    norms = squared.numpy(), _columns(squared_sums)
    accumulate_pass(chunks.table, *addresses_of(sums, gradients), chunks.ends, *norms)
    set_missing(gradients, squared)


def restore_(parameters: Tensors | None, masters: Tensors, gradients: OptionalTensors, treatment: Treatment) -> None:
    written = [None] * len(masters) if parameters is None else parameters
    chunks = chunks_of(require_layout(torch.float32, masters=masters, parameters=written, gradients=gradients))
    run(restore_pass, chunks, *addresses_of(written, masters, gradients), *_treatment(treatment))
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
    lists = {"parameters": parameters, "masters": masters, "gradients": gradients, "buffers": buffers}
    chunks = chunks_of(require_layout(torch.float32, **lists))
    tables = *_treatment(treatment), np.asarray(rates, np.float32), *_tables(rounding)
    _measure(figures, descend_pass, chunks, *addresses_of(*lists.values()), *tables)
    increment_version(parameters)


def _treatment(treatment: Treatment) -> tuple[Any, ...]:
    squared, l1, l2, normalize = treatment
    return squared.numpy(), np.asarray(l1, np.float32), np.asarray(l2, np.float32), normalize
