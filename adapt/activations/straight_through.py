"""The straight-through estimator of one activation: an autograd function, and operators for compiled programs.

Forward returns Q(x); backward passes the gradient where x lies in the range, and rounds it if errors are rounded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapt import torch_internals, user_warnings
from adapt.activations import checkpointing
from adapt.activations.ownership import is_unshared
from adapt.kernels.activation import NOISE, ActivationKernels, SiteTables, activation_kernels, mask_size


class StraightThrough(torch.autograd.Function):
    """The straight-through estimator for values that are already rounded."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rounded: list[Tensor],
        mask: Tensor | None,
        kernels: ActivationKernels,
        sites: SiteTables,
        error: int,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.kernels, ctx.sites, ctx.error = kernels, sites, error
        if rounded:
            # Passed in a list, since returning a tensor argument would make it a view.
            (x,) = rounded
        else:
            ctx.mark_dirty(x)
        ctx.strides = x.stride()
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient,), (mask,) = gradients, ctx.saved_tensors
        if gradient is not None and (mask is not None or ctx.error >= 0):
            # With create_graph the gradient itself is differentiated, also straight through its rounding.
            differentiable = torch.is_grad_enabled() and gradient.requires_grad
            in_place = not differentiable and is_unshared(gradient)
            passed = _backward(gradient, mask, ctx.kernels, ctx.sites, ctx.error, ctx.strides, in_place=in_place)
            if differentiable:
                passed = StraightThrough.apply(gradient, [passed], mask, ctx.kernels, ctx.sites, -1)  # type: ignore[no-untyped-call]
            gradient = passed
        return gradient, None, None, None, None, None


def _backward(
    gradient: Tensor,
    mask: Tensor | None,
    kernels: ActivationKernels,
    sites: SiteTables,
    error: int,
    strides: Sequence[int],
    *,
    in_place: bool = False,
) -> Tensor:
    """Return Q(gradient) where the mask says inside, 0 elsewhere, with the strides of the forward result.

    The result is a new tensor unless `in_place`, which avoids writing to memory that is not in a cache.
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
    sites: SiteTables,
    site: int,
    *,
    training: bool,
    in_place: bool = False,
    start: Tensor | None = None,
) -> tuple[Tensor, bool]:
    """Return Q(x), in a new tensor unless `in_place`, and whether backward needs the mask.

    Args:
        start: where in the site's stream a repeated pass begins, int64 []; if None, where the last pass began.
    """
    source = output = x.detach()
    if not in_place:
        output = torch.empty_like(source)
        # A new tensor has the strides of a dense source; a source with gaps is copied into it.
        if output.stride() != source.stride():
            source = output.copy_(source)
    replay = training and checkpointing.is_repeated()
    if start is None:
        if replay:
            _warn_if_ambiguous(sites, site, x.numel())
        return output, kernels.forward(source, output, mask, sites, site, training=training, replay=replay)
    # A replay starts its own number of elements before `drawn`, which is restored afterwards: first passes used them.
    used = sites.drawn.data[site].clone()
    sites.drawn.data[site] = start + x.numel()
    needed = kernels.forward(source, output, mask, sites, site, training=training, replay=replay)
    sites.drawn.data[site] = used
    return output, needed


def _warn_if_ambiguous(sites: SiteTables, site: int, numel: int) -> None:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return
    if int(sites.formats[site, 4]) == NOISE and int(sites.drawn[site]) != numel:
        user_warnings.warn(
            "activation checkpointing repeats one of several passes through a layer whose activations are rounded "
            "stochastically, and in a compiled program, or with a checkpointing that is not torch.utils.checkpoint's, "
            "the noise of the last pass is drawn again: gradients may be inexact unless backward follows each pass"
        )


# Operators for the graphs of torch.compile. The sites' tables are their inputs, so a changed precision causes no
# recompilation. The mutation of the streams is not declared, because only these operators read them. They ask the
# compiler not to merge two calls with the same input; not all of its passes obey.


@torch_internals.random_op("adapt::quantize_activation")
def _quantize_activation(
    x: Tensor,
    formats: Tensor,
    keys: Tensor,
    drawn: Tensor,
    peaks: Tensor,
    samples: Tensor,
    site: int,
    error: int,
    training: bool,
) -> tuple[Tensor, Tensor]:
    mask = torch.empty(mask_size(x.numel()), dtype=torch.uint8, device=x.device)
    sites = SiteTables(formats, keys, drawn, peaks, samples)
    return quantized(x, mask, activation_kernels(x.device), sites, site, training=training)[0], mask


@_quantize_activation.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(mask_size(x.numel()), dtype=torch.uint8)


# The schema is written out because torch 2.6 cannot infer a sequence of integers.
@torch_internals.random_op(
    "adapt::quantize_error",
    schema="(Tensor gradient, Tensor mask, Tensor formats, Tensor keys, Tensor drawn, Tensor peaks, Tensor samples, "
    "SymInt error, SymInt[] strides) -> Tensor",
)
def _quantize_error(
    gradient: Tensor,
    mask: Tensor,
    formats: Tensor,
    keys: Tensor,
    drawn: Tensor,
    peaks: Tensor,
    samples: Tensor,
    error: int,
    strides: Sequence[int],
) -> Tensor:
    sites = SiteTables(formats, keys, drawn, peaks, samples)
    return _backward(gradient, mask, activation_kernels(gradient.device), sites, error, strides)


@_quantize_error.register_fake
def _(gradient: Tensor, *others: Any) -> Tensor:
    *_, strides = others
    return gradient.new_empty_strided(gradient.shape, strides)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, *tables, _, ctx.error, _ = inputs
    rounded, mask = output
    ctx.mark_non_differentiable(mask)
    ctx.save_for_backward(mask, *tables)
    ctx.strides = rounded.stride()


def _backward_operator(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return torch.ops.adapt.quantize_error(gradient, *ctx.saved_tensors, ctx.error, ctx.strides), *[None] * 8


_quantize_activation.register_autograd(_backward_operator, setup_context=_save)
