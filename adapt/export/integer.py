"""A captured network run in integers alone: int64 products, sums and shifts. Literal and slow, a reference."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapt.export import dyadic
from adapt.export.dyadic import SIGNIFICAND, Dyadic
from adapt.export.exported import Exported


class IntegerNetwork:
    """Computes what a captured network computes, in integers, from its graph as torch.export gives it.

    Products of layers are exact sums of words. What follows in float32 (batch norm, shortcuts) is computed as the
    processor does, with the same rounding, in whole numbers. Its networks are made of linear layers, convolutions
    (transposed ones too), batch norms, ReLU and its clipped kin, pooling, additions, products with constants, padding,
    slices and changes of shape. Steps are powers of two, and the sums of every layer fit float32's 24 bits, so that
    the order of summation plays no part.

    Two sums are made exactly and rounded once here, where torch may round in between and so differ by a unit in the
    last place: a layer's sum with a bias that is not on the grid of its products, and the mean over pixels.

    Args:
        exported: the captured network, with its architecture.
    """

    def __init__(self, exported: Exported) -> None:
        self._module = exported.module()
        self._paths = set(exported.layers)
        self._programs: dict[tuple[torch.Size, ...], torch.export.ExportedProgram] = {}

    def __call__(self, *inputs: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the outputs, float32, and what each quantised layer hands on, by its path.

        Raises:
            NotImplementedError: the network has an operation that is not known here.
            ValueError: the sums of a layer do not fit 24 bits, or its inputs lie on no common grid.
        """
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self._programs:
            with torch.no_grad():
                self._programs[shapes] = torch.export.export(self._module, inputs).run_decompositions({})
        return self._run(self._programs[shapes], inputs)

    def _run(
        self, program: torch.export.ExportedProgram, inputs: Sequence[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
        state = {**program.state_dict, **program.constants}
        constants = {**names, **program.graph_signature.inputs_to_lifted_tensor_constants}
        left = iter(inputs)
        values: dict[torch.fx.Node, Any] = {}
        layers: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                tensor = state[constants[node.name]] if node.name in constants else next(left)
                values[node] = Dyadic.of(tensor.detach()) if tensor.is_floating_point() else tensor
            elif node.op == "call_function":
                arguments = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = _compute(node, *arguments)
                for path in _paths(node) & self._paths:
                    # The last operation of a layer leaves its result.
                    layers[path] = values[node]
            elif node.op == "output":
                outputs = [values[result].float() for result in node.args[0]]
        return outputs, {path: value.float() for path, value in layers.items() if isinstance(value, Dyadic)}


def _paths(node: torch.fx.Node) -> set[str]:
    """The modules within which a node was traced."""
    return {path.removeprefix("L['self'].") for path, _ in node.meta.get("nn_module_stack", {}).values()}


def _compute(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    layer = max(_paths(node), key=len, default="")
    if name not in OPERATIONS:
        raise NotImplementedError(f"{name} in {layer or 'the network'} has no integer reference")
    try:
        return OPERATIONS[name](*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"{layer or 'the network'}: {error}") from error


# Operations, by the names that ATen has for them


def _product(operation: Callable[..., Tensor]) -> Callable[..., Dyadic]:
    """A linear layer or convolution: exact sums of words, refused where float32 could not hold them."""

    def compute(x: Dyadic, weight: Dyadic, bias: Dyadic | None = None, *rest: Any) -> Dyadic:
        (words, scale), (weights, step) = x.on_grid(), weight.on_grid()
        # Of one sample, as all have the same bound.
        peak = torch.full_like(words[:1], int(words.abs().max()))
        if int(operation(peak, weights.abs(), None, *rest).max()) >= 1 << SIGNIFICAND:
            raise ValueError(
                "its sums may need more than 24 bits, which float32 rounds in an order that no reference knows"
            )
        sums = operation(words, weights, None, *rest)
        result = Dyadic(sums, torch.full_like(sums, scale + step))
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


def _relu(x: Dyadic) -> Dyadic:
    return x.each(lambda t: torch.where(x.mantissa > 0, t, 0))


def _clamp(x: Dyadic, low: float | None = None, high: float | None = None) -> Dyadic:
    for end, side in ((low, -1), (high, 1)):
        if end is not None:
            limit = _constant(end, x)
            outside = dyadic.compare(x, limit) == side
            pairs = ((limit.mantissa, x.mantissa), (limit.exponent, x.exponent))
            x = Dyadic(*(torch.where(outside, a, b) for a, b in pairs))
    return x


def _constant(number: Any, like: Dyadic) -> Dyadic:
    """A number as float32, or a tensor as it is."""
    if isinstance(number, Dyadic):
        return number
    return Dyadic.of(torch.tensor(float(number))).each(lambda t: t.expand_as(like.mantissa))


def _add(a: Dyadic, b: Any, alpha: int = 1) -> Dyadic:
    if alpha != 1:
        raise NotImplementedError(f"an addition with the factor {alpha} has no integer reference")
    return dyadic.add(a, _constant(b, a))


def _max_pool(x: Dyadic, *args: Any, **kwargs: Any) -> Dyadic:
    # Padding with −∞ means less than every number.
    return dyadic.from_order(F.max_pool2d(dyadic.order(x), *args, **kwargs))


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
    windows = x.each(lambda t: t.unfold(2, kernel[0], along).unfold(3, kernel[1], across))
    return dyadic.divide(dyadic.total(windows, [-2, -1], keepdim=False), kernel[0] * kernel[1])


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return (sizes[0], sizes[-1])


def _adaptive_pool(x: Dyadic, size: Sequence[int]) -> Dyadic:
    height, width = x.mantissa.shape[-2:]
    if height % size[0] or width % size[1]:
        raise NotImplementedError(f"pooling {height}×{width} to {size} has no integer reference")
    return _average_pool(x, [height // size[0], width // size[1]])


def _mean(x: Dyadic, dimensions: list[int], keepdim: bool = False) -> Dyadic:
    count = 1
    for dimension in dimensions:
        count *= x.mantissa.shape[dimension]
    return dyadic.divide(dyadic.total(x, dimensions, keepdim=keepdim), count)


def _moving(operation: Callable[..., Tensor]) -> Callable[..., Dyadic]:
    """An operation that only moves elements."""

    def compute(x: Dyadic, *args: Any, **kwargs: Any) -> Dyadic:
        return x.each(lambda t: operation(t, *args, **kwargs))

    return compute


def _concatenate(parts: Sequence[Dyadic], dim: int = 0) -> Dyadic:
    return Dyadic(torch.cat([x.mantissa for x in parts], dim), torch.cat([x.exponent for x in parts], dim))


def _pad(x: Dyadic, pad: list[int], mode: str = "constant", value: float | None = None) -> Dyadic:
    if mode != "constant" or value:
        raise NotImplementedError(f"padding with mode={mode!r}, value={value} has no integer reference")
    return x.each(lambda t: F.pad(t, pad))


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "linear": _product(F.linear),
    "conv1d": _product(F.conv1d),
    "conv2d": _product(F.conv2d),
    "conv3d": _product(F.conv3d),
    "conv_transpose1d": _product(F.conv_transpose1d),
    "conv_transpose2d": _product(F.conv_transpose2d),
    "conv_transpose3d": _product(F.conv_transpose3d),
    "_native_batch_norm_legit_no_training": _batch_norm,
    "relu": _relu,
    "relu6": lambda x: _clamp(x, 0, 6),
    "hardtanh": lambda x, low=-1, high=1: _clamp(x, low, high),
    "clamp": _clamp,
    "round": dyadic.whole,
    "add": _add,
    "mul": lambda a, b: dyadic.multiply(a, _constant(b, a)),
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
