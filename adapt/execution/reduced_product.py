"""A layer's product in a short floating-point type, forward and backward, in eager mode and in compiled programs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapt.execution.products import Geometry, is_small, layout_of, product, product_gradients, shortened


class _ReducedProduct(torch.autograd.Function):
    """x·weight + bias, computed and returned in a short type, with our own backward pass instead of torch's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry | None,
        dtype: torch.dtype,
        backward: bool,
    ) -> Tensor:
        operands = shortened(x, weight, bias, dtype)
        ctx.save_for_backward(*operands[:2])
        ctx.type_of_x, ctx.geometry, ctx.short = x.dtype, geometry, backward
        return product(*operands, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if not ctx.short:
            error, x, weight = error.float(), x.float(), weight.float()
        of_x, of_weight, of_bias = product_gradients(error, x, weight, ctx.geometry, ctx.needs_input_grad[:3])
        return (
            None if of_x is None else of_x.to(ctx.type_of_x),
            None if of_weight is None else of_weight.float(),
            None if of_bias is None else of_bias.float(),
            *[None] * 3,
        )


def reduced_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry | None,
    dtype: torch.dtype,
    *,
    backward: bool,
    fits: Tensor,
    index: int,
) -> Tensor:
    """Return the product of a layer, with operands and result in a short type and float32 sums.

    In a compiled program, the operands are in the short type only if `fits[index]` is True at run time, and the result
    is widened to float32.

    Args:
        x: the layer's input, batched.
        weight, bias: the layer's parameters.
        geometry: the geometry of a convolution; None for a linear layer.
        dtype: bfloat16 or float16.
        backward: whether the products for the gradients run in the short type too.
        fits: which layers fit into the short type, bool [layers], on the host.
        index: the layer's index in `fits`.
    """
    if not torch.compiler.is_compiling():
        if backward and not is_small(x, weight):
            return product(*shortened(x, weight, bias, dtype), geometry)
        return _ReducedProduct.apply(x, weight, bias, geometry, dtype, backward)  # type: ignore[no-any-return, no-untyped-call]
    numbers = geometry or Geometry((), (), (), False, (), 0)
    return torch.ops.adapt.reduced_product(  # type: ignore[no-any-return]
        x, weight, bias, fits, index, dtype, backward, *numbers
    )


# The operators' arguments as torch schemas. A geometry cannot be an argument, but its parts can.
_WHERE = "Tensor fits, SymInt index, ScalarType dtype, bool backward"
_PARTS = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups"


def _geometry(*arguments: Any) -> Geometry | None:
    """Return the geometry from an operator's last arguments; None for a linear layer."""
    geometry = Geometry(*arguments[-len(Geometry._fields) :])
    return geometry if geometry.groups else None


@torch.library.custom_op(
    "adapt::reduced_product",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor? bias, {_WHERE}, {_PARTS}) -> Tensor",
)
def _operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fits: Tensor,
    index: int,
    dtype: torch.dtype,
    backward: bool,
    *parts: Any,
) -> Tensor:
    geometry = _geometry(*parts)
    layout = layout_of(x, weight)
    operands = shortened(x, weight, bias, dtype) if fits[index] else (x.float(), weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        y = product(*operands, geometry).float()
    return y.contiguous(memory_format=layout)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Tensor:
    shape = product(x.to(weight.dtype), weight, bias, _geometry(*others)).shape
    return torch.empty(shape, dtype=torch.float32, device=x.device).contiguous(memory_format=layout_of(x, weight))


@torch.library.custom_op(
    "adapt::reduced_product_backward",
    mutates_args=(),
    schema=f"(Tensor error, Tensor x, Tensor weight, {_WHERE}, bool[] wanted, {_PARTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward_operator(
    error: Tensor,
    x: Tensor,
    weight: Tensor,
    fits: Tensor,
    index: int,
    dtype: torch.dtype,
    backward: bool,
    wanted: Sequence[bool],
    *parts: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = _geometry(*parts)
    layout, type_of_x, like = layout_of(x, weight), x.dtype, weight
    if fits[index]:
        x, weight, _ = shortened(x, weight, None, dtype)
        # The error of a rounded output has the output's type.
        error = error.to(dtype)
    if not (backward and fits[index]):
        error, x, weight = error.float(), x.float(), weight.float()
    with torch.autocast(x.device.type, enabled=False):
        of_x, of_weight, of_bias = product_gradients(error, x, weight, geometry, wanted)
    return (
        _nothing(error) if of_x is None else of_x.to(type_of_x).contiguous(memory_format=layout),
        _nothing(error) if of_weight is None else torch.empty_like(like).copy_(of_weight),
        _nothing(error) if of_bias is None else of_bias.float(),
    )


@_backward_operator.register_fake
def _(error: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    geometry, wanted = _geometry(*others), others[-len(Geometry._fields) - 1]
    channels = error.shape[-1] if geometry is None else error.shape[1]
    return (
        torch.empty_like(x).contiguous(memory_format=layout_of(x, weight)) if wanted[0] else _nothing(error),
        torch.empty_like(weight) if wanted[1] else _nothing(error),
        error.new_empty(channels, dtype=torch.float32) if wanted[2] else _nothing(error),
    )


def _nothing(like: Tensor) -> Tensor:
    """Return an empty tensor in place of a gradient that is not wanted, because an operator cannot return None."""
    return like.new_empty(0, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, fits, *ctx.rest = inputs
    ctx.save_for_backward(x, weight, fits)


def _through_operator(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    index, dtype, backward, *geometry = ctx.rest
    gradients = torch.ops.adapt.reduced_product_backward(
        error, *ctx.saved_tensors, index, dtype, backward, wanted, *geometry
    )
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 10


_operator.register_autograd(_through_operator, setup_context=_save)
