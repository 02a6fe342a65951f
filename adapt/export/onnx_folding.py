"""Fold batch normalisation into the words' steps, so that products stay in integers from layer to layer.

The words do not change, but each channel's step absorbs the factor of its normalisation, so values are rounded in other
places than in training.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.export.extras import needs
from adapt.export.onnx_graph import Graph, attribute, make_node
from adapt.export.onnx_roundings import Rounding, roundings


def fold(graph: Graph, inputs: list[NDArray[Any]]) -> None:
    """Fold batch normalisations into convolutions, and round what flows between in 8 bits.

    Tensors that no layer rounds, such as the sums of a residual network, get the range that they have on these inputs.

    Args:
        graph: the network, whose convolutions and batch normalisations are operators.
        inputs: what to measure ranges on.
    """
    if not fold_norms(graph):
        return
    names = _streams(graph)
    for name, largest in _largest(graph, names, inputs).items():
        _round_stream(graph, name, largest)
    _use_unsigned_words(graph)
    round_biases(graph)


def fold_norms(graph: Graph) -> int:
    """Fold every batch normalisation after a convolution with rounded inputs, and return how many there were."""
    found = {rounding.result: rounding for rounding in roundings(graph)}
    return sum(_fold_norm(graph, norm, found) for norm in graph.nodes("BatchNormalization"))


def _fold_norm(graph: Graph, norm: Any, found: dict[str, Rounding]) -> bool:
    source, removed = norm.input[0], [norm]
    added: Any = 0.0
    if graph.only_reader(source) is None:
        return False
    if source in found:
        removed += found[source].nodes
        source = found[source].source
    writer = graph.writer.get(source)
    if writer is not None and writer.op_type == "Add" and writer.input[1] in graph.constants:
        removed.append(writer)
        added = graph.constants[writer.input[1]].ravel().astype(np.float64)
        writer = graph.writer.get(writer.input[0])
    if writer is None or writer.op_type != "Conv" or graph.only_reader(writer.output[0]) is None:
        return False
    x, weight = (graph.writer.get(name) for name in writer.input[:2])
    if x is None or weight is None or {x.op_type, weight.op_type} != {"DequantizeLinear"}:
        return False
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.input[1:])
    factors = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    words, step = (graph.constants[name] for name in weight.input[:2])
    signs = np.sign(factors).reshape(-1, *[1] * (words.ndim - 1))
    turned = words * signs.astype(np.int64)
    if words.dtype != np.int8 or turned.max() > 127:
        return False  # −(−128) has no word of 8 bits
    steps = np.where(factors == 0, step, step * np.abs(factors)).astype(np.float32)
    bias = (_bias(graph, writer) + added) * factors + beta - mean * factors
    for node in removed:
        graph.graph.node.remove(node)
    writer.output[0] = norm.output[0]
    name = graph.add_constant(f"{writer.output[0]}.bias", bias.astype(np.float32))
    _read(writer, 2, name)
    _dequantize(graph, writer, 1, turned.astype(np.int8), steps)
    graph.find()
    return True


def round_biases(graph: Graph) -> None:
    """Round the biases of folded convolutions to input step × weight step, as integer products need them."""
    for conv in graph.nodes("Conv"):
        if len(conv.input) < 3 or conv.input[2] not in graph.constants:
            continue
        x, weight = (graph.writer[name] for name in conv.input[:2])
        grid = graph.constants[x.input[1]] * graph.constants[weight.input[1]]
        words = np.rint(graph.constants[conv.input[2]].astype(np.float64) / grid)
        ends = np.iinfo(np.int32)
        _dequantize(graph, conv, 2, words.clip(ends.min, ends.max).astype(np.int32), grid)


def _bias(graph: Graph, conv: Any) -> Any:
    if len(conv.input) < 3 or not conv.input[2]:
        return 0.0
    words, step = (graph.constants[name].astype(np.float64) for name in graph.writer[conv.input[2]].input[:2])
    return words * step


def _dequantize(graph: Graph, conv: Any, index: int, words: NDArray[Any], steps: NDArray[Any]) -> None:
    """Make a convolution read words by channel as its weight (1) or its bias (2)."""
    name = f"{conv.output[0]}.{'weight' if index == 1 else 'bias'}"
    parts = (words, steps, np.zeros(len(steps), words.dtype))
    constants = [
        graph.add_constant(f"{name}.{part}", values)
        for part, values in zip(("words", "step", "zero"), parts, strict=True)
    ]
    graph.insert(make_node("DequantizeLinear", constants, [f"{name}.values"], axis=0), before=conv)
    _read(conv, index, f"{name}.values")
    graph.find()


def _read(conv: Any, index: int, name: str) -> None:
    while len(conv.input) <= index:
        conv.input.append("")
    conv.input[index] = name


def _streams(graph: Graph) -> list[str]:
    """Return the float32 tensors between layers, after the ReLU where there is one, in order."""
    names = []
    for node in graph.graph.node:
        constant = any(name in graph.constants for name in node.input)
        if node.op_type not in ("Conv", "Add", "Pad") or (node.op_type == "Add" and constant):
            continue
        name = node.output[0]
        reader = graph.only_reader(name)
        if reader is not None and reader.op_type == "Relu":
            name = reader.output[0]
            reader = graph.only_reader(name)
        if reader is None or reader.op_type != "QuantizeLinear":
            names.append(name)
    return [name for name in names if name not in graph.outputs]


def _use_unsigned_words(graph: Graph) -> None:
    """Round the output of a ReLU to unsigned words of the same step, whose smallest value is 0, and drop the ReLU.

    They reach twice as high as signed words, which would need a Clip in place of the ReLU.
    """
    for rounding in roundings(graph):
        relu, (quantize, *clips, dequantize) = graph.writer.get(rounding.source), rounding.nodes
        signed = rounding.zero.dtype == np.uint8 and rounding.zero == 128
        if not signed or clips or relu is None or relu.op_type != "Relu" or graph.only_reader(rounding.source) is None:
            continue
        quantize.input[2] = dequantize.input[2] = graph.add_constant(f"{rounding.source}.zero", np.array(0, np.uint8))
        graph.remove(relu, instead=relu.input[0])


def _largest(graph: Graph, names: list[str], inputs: list[NDArray[Any]]) -> dict[str, float]:
    """Return the largest magnitude of each tensor on these inputs."""
    from onnx import ModelProto, helper

    runtime = needs("onnxruntime", "onnx")
    model = ModelProto()
    model.CopyFrom(graph.model)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = dict(zip([slot.name for slot in session.get_inputs()], inputs, strict=True))
    return {name: float(np.abs(x).max()) for name, x in zip(names, session.run(names, feed), strict=True)}


def _round_stream(graph: Graph, name: str, largest: float) -> None:
    """Round a tensor to 8 bits, unsigned after a ReLU, which the rounding replaces."""
    writer = graph.writer[name]
    relu = writer if writer.op_type == "Relu" else None
    source = name if relu is None else relu.input[0]
    step = np.float32((largest or 1.0) / (127 if relu is None else 255))
    zero = np.uint8(128 if relu is None else 0)
    constants = [
        graph.add_constant(f"{name}.{part}", np.array(value)) for part, value in (("step", step), ("zero", zero))
    ]
    words, values = f"{name}.words", f"{name}.rounded"
    # Layers round their inputs themselves, which is not needed after this rounding.
    again = [rounding for rounding in roundings(graph) if rounding.source == name]
    place = list(graph.graph.node).index(writer) + 1
    graph.graph.node.insert(place, make_node("QuantizeLinear", [source, *constants], [words]))
    graph.graph.node.insert(place + 1, make_node("DequantizeLinear", [words, *constants], [values]))
    graph.rename_inputs(name, values)
    if relu is not None:
        graph.graph.node.remove(relu)
    graph.find()
    for rounding in again:
        rounding.remove(graph, instead=values)
