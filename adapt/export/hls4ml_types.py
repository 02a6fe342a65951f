"""The fixed-point types of an hls4ml project, which hold every value that the network's inputs and weights allow."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapt.export.onnx_graph import Graph, attribute

_UNCHANGED = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Relu"}
"""Operators whose results lie in the range of their input."""


class Range(NamedTuple):
    """What a tensor can hold: magnitudes up to `largest`, as multiples of 2^−fraction."""

    largest: float
    fraction: int

    def __str__(self) -> str:
        """The shortest signed type of hls4ml that holds it."""
        integer = math.floor(math.log2(self.largest)) + 2 if self.largest else 1 - self.fraction
        return f"fixed<{max(integer + self.fraction, 1)},{integer}>"


def precisions(graph: Graph) -> dict[str, dict[str, str]]:
    """Return the types of every layer of a QONNX graph, by the layer's name and by what has the type.

    Raises:
        ValueError: hls4ml cannot build an operator of the graph.
    """
    ranges: dict[str, Range] = {}
    constants = dict(graph.constants)
    types: dict[str, dict[str, str]] = {}
    for node in graph.graph.node:
        source, *others = node.input
        known = [constants[name] for name in others if name in constants]
        if node.op_type == "Quant":
            step, _, bits = known
            fraction = int(np.max(-np.log2(step)))
            if source in constants:
                constants[node.output[0]] = constants[source]
                continue
            signed = attribute(node, "signed", 1)
            result = Range(float(np.max(step)) * 2.0 ** (float(np.max(bits)) - signed), fraction)
            if any(value.name == source for value in graph.graph.input) and graph.only_reader(source) is not None:
                types["global_in"] = {"result": _rounded(node, step, bits)}
        elif node.op_type in ("Conv", "MatMul") and source in ranges and known:
            result = _product(node.op_type, ranges[source], known)
            types[node.name] = {"accum": str(result), "result": str(result)}
        elif node.op_type == "BatchNormalization" and source in ranges:
            scale, shift = known[:2]
            result = _sum(_scaled(ranges[source], scale), _range(shift))
            types[node.name] = {"scale": str(_range(scale)), "bias": str(_range(shift)), "result": str(result)}
        elif node.op_type == "Add":
            result = _sum(*(_range(constants[name]) if name in constants else ranges[name] for name in node.input))
            types[node.name] = {"result": str(result)}
        elif node.op_type == "MaxPool" and len(attribute(node, "kernel_shape", [])) == 1:
            raise ValueError(
                f"{node.name} pools sequences, which hls4ml does not read from QONNX: use a convolution with a stride, "
                "or export the network to QONNX or ONNX"
            )
        elif node.op_type in _UNCHANGED and source in ranges:
            result = ranges[source]
            types[node.name] = {"result": str(result)}
        else:
            raise ValueError(
                f"{node.name} is a {node.op_type} of {', '.join(node.input)}, for which there are no exact types in "
                "hls4ml: build the network of linear layers and convolutions with rounded inputs, batch normalisation, "
                "ReLU, max pooling, flattening and additions, or export it to QONNX"
            )
        ranges[node.output[0]] = result
    return types


def _rounded(node: Any, step: NDArray[Any], bits: NDArray[Any]) -> str:
    """The type of what a Quant operator returns."""
    kind = "fixed" if attribute(node, "signed", 1) else "ufixed"
    saturation = "SAT_SYM" if attribute(node, "narrow", 0) else "SAT"
    integer = int(bits) + int(np.log2(step))
    return f"{kind}<{int(bits)},{integer},RND_CONV,{saturation}>"


def _range(values: NDArray[Any]) -> Range:
    """The range of constants."""
    fraction = max(int(math.log2(float(value).as_integer_ratio()[1])) for value in np.unique(values))
    return Range(float(np.abs(values).max()), fraction)


def _product(kind: str, x: Range, constants: list[NDArray[Any]]) -> Range:
    """The range of a convolution or a matrix product, and of every partial sum in it."""
    weight = constants[0].astype(np.float64)
    by_channel = np.abs(weight).reshape(len(weight), -1).sum(1) if kind == "Conv" else np.abs(weight).sum(0)
    result = Range(float(by_channel.max()) * x.largest, x.fraction + _range(weight).fraction)
    return _sum(result, _range(constants[1])) if len(constants) > 1 else result


def _scaled(x: Range, factors: NDArray[Any]) -> Range:
    own = _range(factors)
    return Range(x.largest * own.largest, x.fraction + own.fraction)


def _sum(a: Range, b: Range) -> Range:
    return Range(a.largest + b.largest, max(a.fraction, b.fraction))
