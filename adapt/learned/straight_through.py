"""Rounding one input with a learned step and range: an autograd function, and the operators of compiled programs.

Forward returns Q(x). Backward returns the gradient with respect to x, and adds those of step and range to the sums.
There is no second derivative; torch raises an error if one is requested.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapt.kernels.learned_steps import SCALINGS, SUMS, LearnedKernels, learned_kernels
from adapt.kernels.stream import is_dense
from adapt.learned.format_table import FormatTable


class Quantizer:
    """Rounds the input of one site, differentiably.

    Args:
        formats: the table that contains the site's format.
        site: its row.
        scaling: the name of the gradient scaling.
        delta: the strength of the scaling.
        anchor: a leaf that requires grad, so that there is a backward pass even if the input requires none.
    """

    def __init__(self, formats: FormatTable, site: int, scaling: str, delta: float, anchor: Tensor) -> None:
        self.formats, self.anchor = formats, anchor
        self.site, self.scaling, self.delta = site, SCALINGS.index(scaling), delta
        self.kernels = learned_kernels(formats.device)
        # Receives the sums of passes outside training, which do not count.
        self.scratch = torch.zeros(len(formats.numel), SUMS, dtype=torch.float64, device=formats.device)

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        """Return Q(x). Only gradients of training passes are added to the formats' sums."""
        rows, sums = self.formats.rows, self.formats.sums if training else self.scratch
        how = self.site, self.scaling, self.delta
        if torch.compiler.is_compiling():
            return torch.ops.adapt.quantize_learned(x, self.anchor, rows, sums, *how)  # type: ignore[no-any-return]
        if torch.is_grad_enabled() and (training or x.requires_grad):
            return _Through.apply(x, self.anchor, self.kernels, rows, sums, *how)  # type: ignore[no-any-return, no-untyped-call]
        return _rounded(_dense(x.detach()), self.kernels, rows, self.site)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, kernels: LearnedKernels, rows: Tensor, *how: Any) -> Tensor:
        source = _dense(x.detach())
        # The input itself if possible, so that autograd notices if it is overwritten.
        ctx.save_for_backward(x if source.data_ptr() == x.data_ptr() else source)
        ctx.how = kernels, rows, *how
        _, site, _, _ = how
        return _rounded(source, kernels, rows, site)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (source,) = gradients, ctx.saved_tensors
        output = _gradient(gradient, source, *ctx.how)
        return (output if ctx.needs_input_grad[0] else None), *[None] * 7


def _dense(x: Tensor) -> Tensor:
    """Return x in a memory layout that the kernels support."""
    return x if is_dense(x) else x.contiguous()


def _rounded(source: Tensor, kernels: LearnedKernels, rows: Tensor, site: int) -> Tensor:
    output = torch.empty_like(source)
    kernels.forward(source, output, rows, site)
    return output


def _gradient(
    gradient: Tensor,
    source: Tensor,
    kernels: LearnedKernels,
    rows: Tensor,
    sums: Tensor,
    site: int,
    scaling: int,
    delta: float,
) -> Tensor:
    """Return the gradient with respect to the source, and add those of step and range to the site's sums."""
    gradient, source = gradient.detach(), source.detach()
    output = torch.empty_like(source)
    if gradient.stride() != source.stride() or gradient.dtype != source.dtype:
        gradient = output.copy_(gradient)
    kernels.backward(gradient, source, output, rows, site, sums, scaling=scaling, delta=delta)
    return output


# The operators in graphs of torch.compile and torch.export. Table and sums are inputs, so a changed format does not
# trigger recompilation. The mutation of the sums is not declared, because only the learner's step reads them. The
# anchor's gradient, a zero, keeps the backward operator in the graph even if the input needs no gradient.


@torch.library.custom_op("adapt::quantize_learned", mutates_args=())
def _quantize_learned(
    x: Tensor, anchor: Tensor, rows: Tensor, sums: Tensor, site: int, scaling: int, delta: float
) -> Tensor:
    return _rounded(_dense(x), learned_kernels(x.device), rows, site)


@_quantize_learned.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(_dense(x))


@torch.library.custom_op("adapt::learned_gradient", mutates_args=())
def _learned_gradient(
    gradient: Tensor, x: Tensor, rows: Tensor, sums: Tensor, site: int, scaling: int, delta: float
) -> tuple[Tensor, Tensor]:
    output = _gradient(gradient, _dense(x), learned_kernels(x.device), rows, sums, site, scaling, delta)
    return output, rows.new_zeros(())


@_learned_gradient.register_fake
def _(gradient: Tensor, x: Tensor, rows: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_dense(x)), rows.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, rows, sums, *ctx.how = inputs
    ctx.save_for_backward(x, rows, sums)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.adapt.learned_gradient(gradient, *ctx.saved_tensors, *ctx.how), *[None] * 5


_quantize_learned.register_autograd(_back, setup_context=_save)
