"""Rounding one input with a learned step and range: an autograd function, and the operators of compiled programs.

Forward returns Q(x). Backward returns the gradient with regard to x and adds up those to the step and the range.
There is no second derivative; torch raises an error where one is requested.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapt.kernels.learned_steps import SCALINGS, SUMS, LearnedKernels, learned_kernels
from adapt.kernels.stream import is_dense
from adapt.learned.format_table import FormatTable


class Quantizer:
    """Where a site's format is, and how its gradient goes back.

    Args:
        formats: hold the site.
        site: its row.
        scaling: the name of the gradient scaling, and `delta` its strength.
        anchor: a leaf that asks for a gradient, so that there is a backward pass even where the input asks for none.
    """

    def __init__(self, formats: FormatTable, site: int, scaling: str, delta: float, anchor: Tensor) -> None:
        self.formats, self.anchor = formats, anchor
        self.site, self.scaling, self.delta = site, SCALINGS.index(scaling), delta
        self.kernels = learned_kernels(formats.device)
        # Takes what passes other than training's would note.
        self.scratch = torch.zeros(len(formats.numel), SUMS, dtype=torch.float64, device=formats.device)

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        """Q(x). Only a training pass's gradient is noted in the formats' sums."""
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
        # The input itself where that is possible, so that autograd notices if someone overwrites it.
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
    """As the kernels can walk it."""
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
    """The gradient with regard to the source; what step and range get of it is added to the site's sums."""
    gradient, source = gradient.detach(), source.detach()
    output = torch.empty_like(source)
    if gradient.stride() != source.stride() or gradient.dtype != source.dtype:
        gradient = output.copy_(gradient)
    kernels.backward(gradient, source, output, rows, site, sums, scaling=scaling, delta=delta)
    return output


# What torch.compile and torch.export put into their graphs: table and sums are inputs, so a format that moves
# recompiles nothing. That the sums change is not declared: nothing but a step of the learner reads them. The
# anchor's gradient, a zero, keeps the backward operator in the graph where the input needs none.


@torch.library.custom_op("adapt::quantize_learned", mutates_args=())
def _quantize_learned(
    x: Tensor, anchor: Tensor, rows: Tensor, sums: Tensor, site: int, scaling: int, delta: float
) -> Tensor:
    return _rounded(_dense(x), learned_kernels(x.device), rows, site)


@_quantize_learned.register_fake
def _(x: Tensor, anchor: Tensor, rows: Tensor, sums: Tensor, site: int, scaling: int, delta: float) -> Tensor:
    return torch.empty_like(_dense(x))


@torch.library.custom_op("adapt::learned_gradient", mutates_args=())
def _learned_gradient(
    gradient: Tensor, x: Tensor, rows: Tensor, sums: Tensor, site: int, scaling: int, delta: float
) -> tuple[Tensor, Tensor]:
    output = _gradient(gradient, _dense(x), learned_kernels(x.device), rows, sums, site, scaling, delta)
    return output, rows.new_zeros(())


@_learned_gradient.register_fake
def _(
    gradient: Tensor, x: Tensor, rows: Tensor, sums: Tensor, site: int, scaling: int, delta: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_dense(x)), rows.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, rows, sums, *ctx.how = inputs
    ctx.save_for_backward(x, rows, sums)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.adapt.learned_gradient(gradient, *ctx.saved_tensors, *ctx.how), *[None] * 5


_quantize_learned.register_autograd(_back, setup_context=_save)
