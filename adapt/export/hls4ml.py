"""`to_hls4ml`, a captured network as an hls4ml project whose fixed-point types hold every sum."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from adapt.export.exported import Exported
from adapt.export.extras import needs
from adapt.export.onnx import NORMS, replace
from adapt.export.onnx_graph import Graph, attribute
from adapt.export.onnx_operators import BatchNorm
from adapt.export.qonnx import write
from adapt.torch_internals import ConvNd

_UNCHANGED = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Relu"}
_UNROUNDED = "fixed<32,16>"
"""The type of inputs that the network does not round."""


class Range(NamedTuple):
    """What a tensor can hold: magnitudes up to `largest`, as multiples of 2^−fraction."""

    largest: float
    fraction: int

    def __str__(self) -> str:
        """The shortest signed type of hls4ml that holds it."""
        integer = math.floor(math.log2(self.largest)) + 2 if self.largest else 1 - self.fraction
        return f"fixed<{max(integer + self.fraction, 1)},{integer}>"


def to_hls4ml(
    exported: Exported,
    path: str | os.PathLike[str],
    inputs: Any,
    *,
    backend: str = "Vitis",
    io_type: str = "io_parallel",
) -> Any:
    """Write a captured network as an hls4ml project.

    Weights become ap_fixed<WL, WL − FL>, rounded activations ap_fixed<WL, WL − FL, AP_RND_CONV, AP_SAT>. Everything
    between has a type that holds every value which its inputs and weights allow, so that no sum overflows and nothing
    is rounded but where the network rounds. Batch normalisation keeps its factors to the last bit, in words of about 27
    bits.

    Linear layers, convolutions, batch normalisation, ReLU, max pooling, flattening and residual additions are covered.
    Pictures become channels-last, and so do sequences that a Conv1d reads: `compile()`, then `predict(x)` of NumPy
    arrays [batch, height, width, channels] or [batch, length, channels] runs the C simulation.

    Args:
        exported: the captured network; its layers' inputs are rounded, in steps that are powers of two.
        path: the folder of the project, which is made.
        inputs: an example of the network's input: one sample or more.
        backend: hls4ml's backend, such as "Vitis".
        io_type: "io_parallel" or "io_stream".

    Returns:
        hls4ml's ModelGraph, whose project is written.

    Raises:
        ModuleNotFoundError: qonnx or hls4ml are missing: pip install 'adapt-precision[fpga]'.
        ValueError: hls4ml has no type for a format, or no layer for an operator; the message names it.
    """
    hls4ml = needs("hls4ml", "fpga")
    check_formats(exported)
    check_layers(exported)
    model = simplified(exported, inputs[:1] if isinstance(inputs, Tensor) else inputs)
    types = precisions(Graph(model.model))
    config = hls4ml.utils.config_from_onnx_model(
        model, granularity="name", backend=backend, default_precision=_UNROUNDED
    )
    for name, own in types.items():
        config["LayerName"].setdefault(name, {"Precision": {}})["Precision"].update(own)
    project = hls4ml.converters.convert_from_onnx_model(
        model, hls_config=config, output_dir=os.fspath(path), backend=backend, io_type=io_type
    )
    project.write()
    return project


def simulation(project: Any, exported: Exported) -> Callable[[Tensor], list[Tensor]]:
    """Compile a project's C simulation by g++, and return a function of the network's inputs that runs it.

    It is what `adapt.export.verify` takes. Seconds to minutes of compilation.
    """
    project.compile()

    def outputs(x: Tensor) -> list[Tensor]:
        if _is_channels_last(exported, x):
            x = x.movedim(1, -1)
        found = torch.from_numpy(np.array(project.predict(x.contiguous().numpy())))
        shape = project.get_output_variables()[0].shape
        found = found.reshape(len(x), *shape)
        return [found.movedim(-1, 1) if found.ndim > 2 and _is_channels_last(exported, x) else found]

    return outputs


def _is_channels_last(exported: Exported, inputs: Any) -> bool:
    """Whether hls4ml gets inputs with their channels last: pictures, and sequences that are convolved."""
    assert exported.structure is not None
    convolves = any(isinstance(layer, ConvNd) for layer in exported.structure.modules())
    return isinstance(inputs, Tensor) and (inputs.ndim == 4 or (inputs.ndim == 3 and convolves))


def check_formats(exported: Exported) -> None:
    """Refuse formats that have no fixed-point type.

    Raises:
        ValueError: there is one; the message names it.
    """
    for name, form in exported.formats.items():
        if form.fraction_length is None:
            raise ValueError(
                f"{name} has {form}, and fixed point has powers of two as steps alone: train with adapt.attach, or "
                "export to ONNX"
            )
        if bool(np.any(form.signed & (form.word_length == 1))):
            raise ValueError(
                f"{name} has one signed bit, a type without zero that hls4ml has not: train it with 2 bits"
            )


def check_layers(exported: Exported) -> None:
    """Refuse convolutions that hls4ml's reader of QONNX takes for others, or has not.

    Raises:
        ValueError: there is one; the message names it.
    """
    assert exported.structure is not None
    for path, layer in exported.structure.named_modules():
        if not isinstance(layer, ConvNd):
            continue
        is_depthwise = layer.groups == layer.in_channels == layer.out_channels
        problem = (
            "is a transposed convolution, which hls4ml does not read from QONNX: use an upsampling and a convolution"
            if layer.transposed
            else "has three dimensions, and hls4ml has convolutions of one and two"
            if len(layer.kernel_size) > 2
            else f"has {layer.groups} groups, and hls4ml has one group or one per channel: train it with either"
            if layer.groups > 1 and not is_depthwise
            else f"has dilation {layer.dilation}, which hls4ml reads with the wrong size: train it with dilation 1"
            if max(layer.dilation) > 1
            else None
        )
        if problem:
            raise ValueError(f"{path or 'the network'} {problem}, or export it to QONNX or ONNX")


def simplified(exported: Exported, inputs: Any) -> Any:
    """Return the network as the qonnx ModelWrapper that hls4ml reads: channels last, products as MatMul."""
    needs("qonnx", "fpga")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.util.cleanup import cleanup_model

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        write(exported, file, inputs, norms=exact_factors)
        model = cleanup_model(cleanup_model(ModelWrapper(os.fspath(file))).transform(GemmToMatMul()))
    if _is_channels_last(exported, inputs):
        model = cleanup_model(model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True)))
    return model


def exact_factors(network: nn.Module) -> None:
    """Give batch normalisations mean 0 and variance 1, so that γ and β are the factors with which torch computes."""
    for path, norm in list(network.named_modules()):
        if isinstance(norm, NORMS) and norm.running_var is not None:
            replace(network, path, _Factors(norm))


class _Factors(nn.Module):
    """x·α + β as a batch normalisation with mean 0 and variance 1."""

    zero: Tensor
    one: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        factors = BatchNorm(norm)
        self.register_buffer("scale", factors.scale.float())
        self.register_buffer("shift", factors.shift.float())
        self.register_buffer("zero", torch.zeros_like(self.scale))
        self.register_buffer("one", torch.ones_like(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, …] to the same."""
        return F.batch_norm(x, self.zero, self.one, self.scale, self.shift, eps=0.0)


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
