"""The straight-through estimator of one activation: an autograd function, and the operators of compiled programs.

Forward answers Q(x); backward lets the gradient through where x lies in the range, and rounds it where errors are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapt.activations.ownership import is_alone
from adapt.kernels.activation import ActivationKernels, Sites, activation_kernels, mask_size


class StraightThrough(torch.autograd.Function):
    """The straight-through estimator for values that were rounded already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rounded: list[Tensor],
        mask: Tensor | None,
        kernels: ActivationKernels,
        sites: Sites,
        error: int,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.kernels, ctx.sites, ctx.error = kernels, sites, error
        if rounded:
            # In a list, since a tensor among the arguments could not be the result without becoming a view.
            (x,) = rounded
        else:
            ctx.mark_dirty(x)
        ctx.strides = x.stride()
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient,), (mask,) = gradients, ctx.saved_tensors
        if gradient is not None and (mask is not None or ctx.error >= 0):
            # With create_graph the gradient itself is differentiated, straight through its rounding as well.
            again = torch.is_grad_enabled() and gradient.requires_grad
            in_place = not again and is_alone(gradient)
            let_in = _through(gradient, mask, ctx.kernels, ctx.sites, ctx.error, ctx.strides, in_place=in_place)
            if again:
                let_in = StraightThrough.apply(gradient, [let_in], mask, ctx.kernels, ctx.sites, -1)  # type: ignore[no-untyped-call]
            gradient = let_in
        return gradient, None, None, None, None, None


def _through(
    gradient: Tensor,
    mask: Tensor | None,
    kernels: ActivationKernels,
    sites: Sites,
    error: int,
    strides: Sequence[int],
    *,
    in_place: bool = False,
) -> Tensor:
    """Q(gradient) where the mask says inside, 0 elsewhere, laid out as the forward pass's result was.

    A new tensor unless in place, which spares writing to memory that is in no cache.
    """
    gradient = output = gradient.detach()
    if not in_place or gradient.stride() != tuple(strides):
        output = torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype, device=gradient.device)
        if gradient.stride() != output.stride():
            gradient = output.copy_(gradient)
    kernels.backward(gradient, output, mask, sites, error)
    return output


def quantized(
    x: Tensor,
    mask: Tensor | None,
    kernels: ActivationKernels,
    sites: Sites,
    site: int,
    *,
    training: bool,
    in_place: bool = False,
) -> tuple[Tensor, bool]:
    """Q(x), and whether the mask is needed. A new tensor unless in place."""
    source = output = x.detach()
    if not in_place:
        output = torch.empty_like(source)
        # Of a dense tensor the new one has the strides; another is laid out anew.
        if output.stride() != source.stride():
            source = output.copy_(source)
    # Inside backward, a forward pass is one that activation checkpointing repeats.
    replay = training and torch._C._current_graph_task_id() != -1
    return output, kernels.forward(source, output, mask, sites, site, training=training, replay=replay)


# What torch.compile puts into its graphs: the sites' tables are inputs of the operators, so a precision that moves
# recompiles nothing. That the streams move on is not declared: nothing but these operators ever looks. The tag asks
# not to merge two calls with the same input into one; not all of the compiler's passes heed it.


@torch.library.custom_op("adapt::quantize_activation", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _quantize_activation(
    x: Tensor, formats: Tensor, keys: Tensor, drawn: Tensor, peaks: Tensor, site: int, error: int, training: bool
) -> tuple[Tensor, Tensor]:
    mask = torch.empty(mask_size(x.numel()), dtype=torch.uint8, device=x.device)
    sites = Sites(formats, keys, drawn, peaks)
    return quantized(x, mask, activation_kernels(x.device), sites, site, training=training)[0], mask


@_quantize_activation.register_fake
def _(
    x: Tensor, formats: Tensor, keys: Tensor, drawn: Tensor, peaks: Tensor, site: int, error: int, training: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(mask_size(x.numel()), dtype=torch.uint8)


@torch.library.custom_op("adapt::quantize_error", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _quantize_error(
    gradient: Tensor,
    mask: Tensor,
    formats: Tensor,
    keys: Tensor,
    drawn: Tensor,
    peaks: Tensor,
    error: int,
    strides: Sequence[int],
) -> Tensor:
    sites = Sites(formats, keys, drawn, peaks)
    return _through(gradient, mask, activation_kernels(gradient.device), sites, error, strides)


@_quantize_error.register_fake
def _(
    gradient: Tensor,
    mask: Tensor,
    formats: Tensor,
    keys: Tensor,
    drawn: Tensor,
    peaks: Tensor,
    error: int,
    strides: Sequence[int],
) -> Tensor:
    return gradient.new_empty_strided(gradient.shape, strides)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, *tables, _, ctx.error, _ = inputs
    rounded, mask = output
    ctx.mark_non_differentiable(mask)
    ctx.save_for_backward(mask, *tables)
    ctx.strides = rounded.stride()


def _through_operator(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return torch.ops.adapt.quantize_error(gradient, *ctx.saved_tensors, ctx.error, ctx.strides), *[None] * 7


_quantize_activation.register_autograd(_through_operator, setup_context=_save)
