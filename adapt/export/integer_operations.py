"""The operations of a network's graph in integers, by the names that ATen has for them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapt.export import dyadic
from adapt.export.dyadic import Dyadic
from adapt.export.float32 import SIGNIFICAND
from adapt.export.means import sum_in_order, summation_order


def _product(operation: Callable[..., Tensor]) -> Callable[..., Dyadic]:
    """A linear layer or convolution: exact sums of words, refused where float32 could not hold them."""

    def compute(x: Dyadic, weight: Dyadic, bias: Dyadic | None = None, *rest: Any) -> Dyadic:
        (words, scale), (weights, step) = x.on_grid(), weight.on_grid()
        # Whole numbers in float64, which holds sums of up to 53 bits in every order and has fast products.
        words, weights = words.double(), weights.double()
        # The largest word everywhere bounds the sums of all samples; where that does not fit, their own words may.
        for magnitudes in (torch.full_like(words[:1], float(words.abs().max())), words.abs()):
            if int(operation(magnitudes, weights.abs(), None, *rest).max()) < 1 << SIGNIFICAND:
                break
        else:
            raise ValueError(
                "its sums may need more than 24 bits, which float32 rounds in an order that no reference knows"
            )
        sums = operation(words, weights, None, *rest).long()
        result = Dyadic(sums, torch.tensor(scale + step))
        if bias is None:
            return result
        shape = [1] * sums.ndim
        shape[sums.ndim - (1 if operation is F.linear else weight.mantissa.ndim - 1)] = -1
        return dyadic.add(result, bias.each(lambda t: t.view(shape)))

    return compute


def _batch_norm(
    x: Dyadic,
    weight: Dyadic | None,
    bias: Dyadic | None,
    mean: Dyadic,
    variance: Dyadic,
    momentum: float,
    epsilon: float,
) -> tuple[Dyadic, None, None]:
    """x·α + β with α = weight/√(variance + ε), β = bias − mean·α: constants in float32, the rest in integers."""
    # NumPy's square root is the nearest float32 number, as that of torch's batch norm is; torch.sqrt can be off by one.
    root = np.sqrt((variance.float() + epsilon).numpy())
    alpha = torch.from_numpy(np.float32(1) / root)
    if weight is not None:
        alpha = alpha * weight.float()
    factor = Dyadic.of(alpha)
    offset = Dyadic.of(torch.zeros_like(alpha) if bias is None else bias.float())
    negative = Dyadic(-mean.mantissa, mean.exponent)
    offset = dyadic.multiply_add(negative, factor, offset, fused=fuses())
    shape = [1, -1] + [1] * (x.mantissa.ndim - 2)
    factor, offset = (value.each(lambda t: t.view(shape)) for value in (factor, offset))
    return dyadic.multiply_add(x, factor, offset, fused=fuses()), None, None


@cache
def fuses() -> bool:
    """Return whether this machine's batch norm rounds x·α + β once, as a fused multiply-add does."""
    x, one = torch.tensor([[1 + 2.0**-12]]), torch.ones(1)
    offset = torch.tensor([-(1 + 2.0**-11)])
    # The exact result is 2^−24; rounded in between, the product loses it.
    return bool(F.batch_norm(x, torch.zeros(1), one, 1 + 2.0**-12 * one, offset, eps=0.0) != 0)


def _clamp(x: Dyadic, low: float | None = None, high: float | None = None) -> Dyadic:
    if not x.exponent.any() and all(end is None or end == int(end) for end in (low, high)):
        # Words, which are whole numbers already, saturate at the ends of their range.
        return Dyadic(x.mantissa.clamp(*(None if end is None else int(end) for end in (low, high))), x.exponent)
    for end, side in ((low, -1), (high, 1)):
        if end is not None:
            limit = _constant(end)
            outside = dyadic.compare(x, limit) == side
            pairs = ((limit.mantissa, x.mantissa), (limit.exponent, x.exponent))
            x = Dyadic(*(torch.where(outside, a, b) for a, b in pairs))
    return x


def _constant(number: Any) -> Dyadic:
    """A number as float32, or a tensor as it is."""
    return number if isinstance(number, Dyadic) else Dyadic.of(torch.tensor(float(number)))


def _add(a: Dyadic, b: Any, alpha: int = 1) -> Dyadic:
    if alpha != 1:
        raise NotImplementedError(f"an addition with the factor {alpha} has no integer reference")
    return dyadic.add(a, _constant(b))


def _max_pool(x: Dyadic, *args: Any, **kwargs: Any) -> Dyadic:
    # Padding with −∞ means less than every number.
    return dyadic.from_order(F.max_pool2d(dyadic.order(x), *args, **kwargs))


def _max_pool_1d(
    x: Dyadic,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Dyadic:
    """The pooling of pictures of height 1."""
    sizes = ((1, kernel[0]), (1, (stride or kernel)[0]), (0, padding[0]), (1, dilation[0]))
    return _max_pool(x.each(lambda t: t.unsqueeze(2)), *sizes, ceil_mode).each(lambda t: t.squeeze(2))


def _average_pool(
    x: Dyadic,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Dyadic:
    if ceil_mode or divisor is not None or (any(padding) and not count_include_pad):
        raise NotImplementedError("average pooling that counts elements has no integer reference")
    kernel = _pair(kernel)
    along, across = _pair(stride or kernel)
    top, left = _pair(padding)
    x = x.each(lambda t: F.pad(t, (left, left, top, top)))
    return dyadic.divide(_window_sums(x, kernel, (along, across)), kernel[0] * kernel[1])


def _window_sums(x: Dyadic, kernel: Sequence[int], stride: Sequence[int]) -> Dyadic:
    """Sums over windows, one element after the other, as torch computes them."""
    windows = x.each(lambda t: t.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(-2))
    total: Dyadic = sum_in_order(windows, 1, dyadic.add)
    return total


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return (sizes[0], sizes[-1])


def _adaptive_pool(x: Dyadic, size: Sequence[int]) -> Dyadic:
    height, width = x.mantissa.shape[-2:]
    if list(size) == [1, 1]:
        return _mean(x, [-2, -1], keepdim=True)
    if height % size[0] or width % size[1]:
        raise NotImplementedError(f"pooling {height}×{width} to {size} has no integer reference")
    kernel = (height // size[0], width // size[1])
    # torch divides by height and width, one after the other.
    return dyadic.divide(dyadic.divide(_window_sums(x, kernel, kernel), kernel[0]), kernel[1])


def _mean(x: Dyadic, dimensions: Sequence[int], keepdim: bool = False) -> Dyadic:
    shape = x.mantissa.shape
    count = math.prod(shape[dimension] for dimension in dimensions)
    last = list(range(len(shape) - len(dimensions), len(shape)))
    order = summation_order(count) if sorted(d % len(shape) for d in dimensions) == last else None
    if order is None:
        return dyadic.divide(dyadic.total(x, list(dimensions), keepdim=keepdim), count)
    terms = x.spread().each(lambda t: F.pad(t.flatten(last[0]), (0, 1))[..., order])
    mean = dyadic.divide(sum_in_order(terms, order.ndim, dyadic.add), count)
    return mean.each(lambda t: t.reshape(*shape[: last[0]], *[1] * len(last))) if keepdim else mean


def _moving(operation: Callable[..., Tensor]) -> Callable[..., Dyadic]:
    """An operation that only moves elements."""

    def compute(x: Dyadic, *args: Any, **kwargs: Any) -> Dyadic:
        return x.each(lambda t: operation(t, *args, **kwargs))

    return compute


def _concatenate(parts: Sequence[Dyadic], dim: int = 0) -> Dyadic:
    parts = [x.spread() for x in parts]
    return Dyadic(torch.cat([x.mantissa for x in parts], dim), torch.cat([x.exponent for x in parts], dim))


def _pad(x: Dyadic, pad: list[int], mode: str = "constant", value: float | None = None) -> Dyadic:
    if mode != "constant" or value:
        raise NotImplementedError(f"padding with mode={mode!r}, value={value} has no integer reference")
    return x.each(lambda t: F.pad(t, pad))


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "linear": _product(F.linear),
    "addmm": lambda bias, x, weight: _product(F.linear)(x, weight.each(torch.t), bias),
    "conv1d": _product(F.conv1d),
    "conv2d": _product(F.conv2d),
    "conv3d": _product(F.conv3d),
    "conv_transpose1d": _product(F.conv_transpose1d),
    "conv_transpose2d": _product(F.conv_transpose2d),
    "conv_transpose3d": _product(F.conv_transpose3d),
    "_native_batch_norm_legit_no_training": _batch_norm,
    "relu": lambda x: Dyadic(x.mantissa.clamp(min=0), x.exponent),
    "relu6": lambda x: _clamp(x, 0, 6),
    "hardtanh": lambda x, low=-1, high=1: _clamp(x, low, high),
    "clamp": _clamp,
    "round": dyadic.whole,
    "add": _add,
    "mul": lambda a, b: dyadic.multiply(a, _constant(b)),
    "max_pool1d": _max_pool_1d,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean,
    "pad": _pad,
    "constant_pad_nd": lambda x, pad, value=0: _pad(x, pad, value=value),
    "cat": _concatenate,
    "view": _moving(torch.Tensor.reshape),
    "reshape": _moving(torch.Tensor.reshape),
    "flatten": _moving(torch.flatten),
    "permute": _moving(torch.permute),
    "transpose": _moving(torch.transpose),
    "unsqueeze": _moving(torch.unsqueeze),
    "squeeze": _moving(torch.squeeze),
    "slice": _moving(torch.ops.aten.slice.Tensor),
    "expand": _moving(torch.Tensor.expand),
    "clone": lambda x, memory_format=None: x,
    "dropout": lambda x, p, train: x,
    "_assert_tensor_metadata": lambda *_, **__: None,
    "getitem": lambda values, index: values[index],
}
