"""The products of linear layers and convolutions in a short floating point type, forward and backward."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SMALL_PICTURE, _MANY_CHANNELS = 36, 256
"""Measured with oneDNN 3.12 on AVX-512: kernels of several taps take up to 1.8 times as long in channels-last layout
where pictures have no more elements and layers no fewer channels than this."""

_FEW_POSITIONS = 8192
"""There, up to so many elements of an output channel, its kernel for the weight's gradient takes 1.2 to 4 times as long
as `_correlation`."""


class Geometry(NamedTuple):
    """How a convolution lies over its input: the arguments of `torch.convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @staticmethod
    def of(module: Any, input: Tensor, output_size: Any = None) -> "tuple[Tensor, Geometry | None]":
        """The input, batched and padded where `torch.convolution` cannot do that, and the geometry; None for linear."""
        if isinstance(module, nn.Linear):
            return input, None
        dimensions = len(module.kernel_size)
        x = input.unsqueeze(0) if input.dim() == dimensions + 1 else input
        padding = module.padding
        if module.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * dimensions
        output_padding = module.output_padding
        if module.transposed:
            output_padding = module._output_padding(
                input,
                output_size,
                module.stride,
                module.padding,
                module.kernel_size,
                dimensions,
                module.dilation,
            )
        return x, Geometry(
            module.stride, padding, module.dilation, module.transposed, tuple(output_padding), module.groups
        )


@cache
def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the platform multiplies this short type and adds up in float32."""
    if device.type != "cpu":
        return True
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype not in known or bool(getattr(torch.ops.mkldnn, known[dtype])())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """x·weight + bias in the type of x, with float32 sums."""
    dtype = x.dtype
    if not is_native(dtype, x.device):
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    y = F.linear(x, weight, bias) if geometry is None else torch.convolution(x, weight, bias, *geometry)
    return y.to(dtype)


def _gradients(
    error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, those that are wanted, in their type, with float32 sums."""
    dtype = x.dtype
    if not is_native(dtype, x.device):
        short = _gradients(error.float(), x.float(), weight.float(), geometry, wanted)
        return tuple(None if gradient is None else gradient.to(dtype) for gradient in short)  # type: ignore[return-value]
    if geometry is None:
        rows = error.reshape(-1, error.shape[-1])
        return (
            error @ weight if wanted[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )
    if not (wanted[1] and _correlates_fast(error, x, weight, geometry)):
        return _convolution_gradients(error, x, weight, geometry, wanted)
    of_x, _, _ = _convolution_gradients(error, x, weight, geometry, (wanted[0], False, False))
    return of_x, _correlation(error, x, weight, geometry), error.sum((0, 2, 3)) if wanted[2] else None


def _convolution_gradients(
    error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if not any(wanted):
        return None, None, None
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        error, x, weight, [error.shape[1]], *geometry, list(wanted)
    )


def _correlates_fast(error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether `_correlation` is faster than the platform's own kernel for the weight's gradient."""
    plain = geometry.groups == 1 and not geometry.transposed
    few = len(error) * error.shape[2:].numel() <= _FEW_POSITIONS
    return plain and few and x.dtype == torch.bfloat16 and _is_small(x, weight)


def _correlation(error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's weight, itself a convolution over the batch: of x with the error as the weight.

    dW[o, c, i, j] = Σ x[n, c, s·h + d·i, s·w + d·j] · g[n, o, h, w], so batch and channels swap, and so do stride and
    dilation.
    """
    x, error = x.transpose(0, 1).contiguous(), error.transpose(0, 1).contiguous()
    taps = geometry._replace(stride=geometry.dilation, dilation=geometry.stride)
    height, width = weight.shape[2:]
    return torch.convolution(x, error, None, *taps)[:, :, :height, :width].transpose(0, 1)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The layout that torch would choose for a convolution of 4-dimensional tensors."""
    either = _is_channels_last(x) or _is_channels_last(weight)
    return torch.channels_last if weight.dim() == 4 and either else torch.contiguous_format


def _fast_layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The same, or a faster one."""
    return torch.contiguous_format if _is_small(x, weight) else _layout(x, weight)


def _is_small(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer convolves small pictures of many channels, several elements at a time, on the CPU."""
    return (
        x.device.type == "cpu"
        and weight.dim() == 4
        and x.shape[2] * x.shape[3] <= _SMALL_PICTURE
        and weight.shape[2:].numel() > 1
        and max(weight.shape[:2]) >= _MANY_CHANNELS
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _short(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in a short type, laid out for speed."""
    x_short, weight_short = x.to(dtype), weight.to(dtype)
    if weight.dim() in (2, 4):
        # Also where they are matrices: torch adds the bias to an input with gaps only after it has rounded the sums.
        layout = _fast_layout(x, weight)
        x_short, weight_short = (t.contiguous(memory_format=layout) for t in (x_short, weight_short))
    return x_short, weight_short, None if bias is None else bias.to(dtype)


class Companions:
    """How the gradients are laid out that meet a layer's own at the layer's input.

    A slice, a padding or a pooling there answers in the plain layout even where the input is channels last, and torch
    adds bfloat16 tensors of different layout ten times slower.
    """

    def __init__(self) -> None:
        self.plain = False

    def watch(self, x: Tensor) -> None:
        """Look at the whole gradient of a channels-last input, and lay it out as the input is."""
        if x.requires_grad and not x.is_leaf and x.dim() == 4 and _is_channels_last(x):
            x.register_hook(self._look)  # type: ignore[no-untyped-call]

    def _look(self, gradient: Tensor) -> Tensor:
        restored = gradient.contiguous(memory_format=torch.channels_last)
        self.plain |= restored is not gradient
        return restored


class _ReducedProduct(torch.autograd.Function):
    """The product of x and weight, plus bias, in a short type, answered in that type."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry | None,
        dtype: torch.dtype,
        backward: bool,
        companions: "Companions",
    ) -> Tensor:
        operands = _short(x, weight, bias, dtype)
        ctx.save_for_backward(*operands[:2])
        ctx.type_of_x, ctx.geometry, ctx.short, ctx.companions = x.dtype, geometry, backward, companions
        return _product(*operands, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if not ctx.short:
            error, x, weight = error.float(), x.float(), weight.float()
        of_x, of_weight, of_bias = _gradients(error, x, weight, ctx.geometry, ctx.needs_input_grad[:3])
        if of_x is not None:
            of_x = of_x.to(ctx.type_of_x)
            of_x = of_x.contiguous() if ctx.companions.plain else of_x
        return (
            of_x,
            None if of_weight is None else of_weight.float(),
            None if of_bias is None else of_bias.float(),
            *[None] * 4,
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
    companions: Companions,
) -> Tensor:
    """The product of a layer, with operands and result in a short type and float32 sums.

    In a compiled program: in the short type where `fits[index]` says so when it runs and in float32 otherwise, answered
    in float32.

    Args:
        x: the layer's input, batched.
        weight, bias: the layer's parameters.
        geometry: how a convolution lies over its input; None for a linear layer.
        dtype: bfloat16 or float16.
        backward: whether the products for the gradients run in the short type too.
        fits: bool [layers], on the host.
        index: the layer's place in it.
        companions: of the layer.
    """
    if not torch.compiler.is_compiling():
        if geometry is None and backward and is_native(dtype, x.device):
            # Torch's own nodes do the same as ours, with less work on the host.
            return F.linear(*_short(x, weight, bias, dtype))
        return _ReducedProduct.apply(x, weight, bias, geometry, dtype, backward, companions)  # type: ignore[no-any-return, no-untyped-call]
    numbers = geometry or Geometry((), (), (), False, (), 0)
    return torch.ops.adapt.reduced_product(  # type: ignore[no-any-return]
        x, weight, bias, fits, index, dtype, backward, *numbers
    )


def _geometry(*numbers: Any) -> Geometry | None:
    """What `reduced_product` handed to the operator."""
    return Geometry(*numbers) if numbers[-1] else None


@torch.library.custom_op("adapt::reduced_product", mutates_args=())
def _operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fits: Tensor,
    index: int,
    dtype: torch.dtype,
    backward: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    geometry = _geometry(stride, padding, dilation, transposed, output_padding, groups)
    layout = _layout(x, weight)
    operands = _short(x, weight, bias, dtype) if fits[index] else (x.float(), weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        y = _product(*operands, geometry).float()
    return y.contiguous(memory_format=layout)


@_operator.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fits: Tensor,
    index: int,
    dtype: torch.dtype,
    backward: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    geometry = _geometry(stride, padding, dilation, transposed, output_padding, groups)
    shape = _product(x.to(weight.dtype), weight, bias, geometry).shape
    return torch.empty(shape, dtype=torch.float32, device=x.device).contiguous(memory_format=_layout(x, weight))


@torch.library.custom_op("adapt::reduced_product_backward", mutates_args=())
def _backward_operator(
    error: Tensor,
    x: Tensor,
    weight: Tensor,
    fits: Tensor,
    index: int,
    dtype: torch.dtype,
    backward: bool,
    wanted: Sequence[bool],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = _geometry(stride, padding, dilation, transposed, output_padding, groups)
    layout, type_of_x, like = _layout(x, weight), x.dtype, weight
    if fits[index]:
        x, weight, _ = _short(x, weight, None, dtype)
        # The error of a rounded output is of its type.
        error = error.to(dtype)
    if not (backward and fits[index]):
        error, x, weight = error.float(), x.float(), weight.float()
    with torch.autocast(x.device.type, enabled=False):
        of_x, of_weight, of_bias = _gradients(error, x, weight, geometry, wanted)
    return (
        _nothing(error) if of_x is None else of_x.to(type_of_x).contiguous(memory_format=layout),
        _nothing(error) if of_weight is None else torch.empty_like(like).copy_(of_weight),
        _nothing(error) if of_bias is None else of_bias.float(),
    )


@_backward_operator.register_fake
def _(
    error: Tensor,
    x: Tensor,
    weight: Tensor,
    fits: Tensor,
    index: int,
    dtype: torch.dtype,
    backward: bool,
    wanted: Sequence[bool],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = error.shape[1] if groups else error.shape[-1]
    return (
        torch.empty_like(x).contiguous(memory_format=_layout(x, weight)) if wanted[0] else _nothing(error),
        torch.empty_like(weight) if wanted[1] else _nothing(error),
        error.new_empty(channels, dtype=torch.float32) if wanted[2] else _nothing(error),
    )


def _nothing(like: Tensor) -> Tensor:
    """What stands for a gradient that is not wanted: an operator cannot answer None."""
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
