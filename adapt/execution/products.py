"""The product of a linear layer or convolution and its gradients, in the operands' type with float32 sums."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALL_PICTURE, _MANY_CHANNELS = 36, 256
"""Measured with oneDNN 3.12 on AVX-512: if images have at most this many elements and layers at least this many
channels, kernels of several taps take up to 1.8 times as long in channels-last layout."""

_FEW_POSITIONS = 8192
"""In the same measurement, if an output channel has at most this many elements, oneDNN's kernel for the weight's
gradient takes 1.2 to 4 times as long as `_correlation`."""


class Geometry(NamedTuple):
    """The geometry of a convolution: the arguments of `torch.convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @staticmethod
    def of(module: Any, input: Tensor, output_size: Any = None) -> "tuple[Tensor, Geometry | None]":
        """Return the input, batched and, if `torch.convolution` cannot pad it, padded, and the geometry.

        The geometry of a linear layer is None.
        """
        if not hasattr(module, "kernel_size"):
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
                input, output_size, module.stride, module.padding, module.kernel_size, dimensions, module.dilation
            )
        return x, Geometry(
            module.stride, padding, module.dilation, module.transposed, tuple(output_padding), module.groups
        )


@cache
def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the platform multiplies numbers of this short type and sums the products in float32."""
    if device.type != "cpu":
        return True
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype not in known or bool(getattr(torch.ops.mkldnn, known[dtype])())


def product(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """Return x·weight + bias in the type of x, with float32 sums."""
    dtype = x.dtype
    if not is_native(dtype, x.device):
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    y = F.linear(x, weight, bias) if geometry is None else torch.convolution(x, weight, bias, *geometry)
    return y.to(dtype)


def product_gradients(
    error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the wanted gradients of x, weight and bias, in their types, with float32 sums."""
    dtype = x.dtype
    if not is_native(dtype, x.device):
        short = product_gradients(error.float(), x.float(), weight.float(), geometry, wanted)
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
    """Return whether `_correlation` is faster than the platform's own kernel for the weight's gradient."""
    plain = geometry.groups == 1 and not geometry.transposed
    few = len(error) * error.shape[2:].numel() <= _FEW_POSITIONS
    return plain and few and x.dtype == torch.bfloat16 and is_small(x, weight)


def _correlation(error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of a convolution's weight as a convolution of x over the batch, with the error as weight.

    dW[o, c, i, j] = Σ x[n, c, s·h + d·i, s·w + d·j] · g[n, o, h, w], so batch and channels are swapped, and so are
    stride and dilation.
    """
    x, error = x.transpose(0, 1).contiguous(), error.transpose(0, 1).contiguous()
    taps = geometry._replace(stride=geometry.dilation, dilation=geometry.stride)
    height, width = weight.shape[2:]
    return torch.convolution(x, error, None, *taps)[:, :, :height, :width].transpose(0, 1)


def layout_of(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the layout that torch would choose for a convolution of 4-dimensional tensors."""
    either = _is_channels_last(x) or _is_channels_last(weight)
    return torch.channels_last if weight.dim() == 4 and either else torch.contiguous_format


def is_small(x: Tensor, weight: Tensor) -> bool:
    """Return whether a layer convolves small images of many channels on the CPU, with more than one tap."""
    return (
        x.device.type == "cpu"
        and weight.dim() == 4
        and x.shape[2] * x.shape[3] <= _SMALL_PICTURE
        and weight.shape[2:].numel() > 1
        and max(weight.shape[:2]) >= _MANY_CHANNELS
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def shortened(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands in a short type, laid out for speed."""
    x_short, weight_short = x.to(dtype), weight.to(dtype)
    if weight.dim() in (2, 4):
        # For matrices too: for an input with gaps, torch adds the bias only after it has rounded the sums.
        layout = torch.contiguous_format if is_small(x, weight) else layout_of(x, weight)
        x_short, weight_short = (t.contiguous(memory_format=layout) for t in (x_short, weight_short))
    return x_short, weight_short, None if bias is None else bias.to(dtype)
