"""Form "integer" of an ONNX file: products of words instead of products of values.

ONNX Runtime derives them from form "qdq" itself; tools that take a file as it is do not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.export.bits import smallest_type
from adapt.export.exported import Exported
from adapt.export.onnx_graph import Graph, attribute, make_node
from adapt.layers.naming import joined
from adapt.layers.products import PRODUCTS

INTEGER_PRODUCTS = ("QLinearConv", "ConvInteger", "MatMulInteger")


def check_products(exported: Exported) -> None:
    """Refuse layers for which ONNX has no integer product.

    Raises:
        ValueError: there is one; the message names it and what fits.
    """
    assert exported.structure is not None
    for path, layer in exported.structure.named_modules():
        weight = exported.name_of(path, "weight")
        if not isinstance(layer, PRODUCTS) or weight not in exported.words:
            continue
        site = exported.formats.get(joined(path, "input"))
        problem = (
            "is a transposed convolution, for which ONNX has no product of integers"
            if getattr(layer, "transposed", False)
            else "has inputs that are not rounded: train it with activations=8"
            if site is None
            else f"has words of {site.word_length} bits as inputs, and integer products take 8: train it with 8"
            if site.word_length > 8
            else f"has weights of {exported.formats[weight]}, and integer products take signed words of 8 bits"
            if smallest_type(exported.formats[weight]).itemsize > 1
            else None
        )
        if problem:
            raise ValueError(f"{path or 'the network'} {problem}, or export with form='qdq'")


def use_integer_products(graph: Graph) -> None:
    """Let convolutions and matrix products of rounded inputs and constant words multiply these words.

    A convolution whose result is rounded to 8 bits becomes QLinearConv. Others become ConvInteger or MatMulInteger, to
    whose sums in 32 bits the words of the bias are added, and which are then multiplied by input step × weight step.
    """
    for kind in ("Conv", "Gemm", "MatMul"):
        for node in graph.nodes(kind):
            x, weight = (graph.writer.get(name) for name in node.input[:2])
            if x is None or weight is None or {x.op_type, weight.op_type} != {"DequantizeLinear"}:
                continue
            if weight.input[0] not in graph.constants or graph.constants[x.input[2]].dtype != np.uint8:
                continue
            rounding = graph.only_reader(node.output[0])
            rounds = rounding is not None and rounding.op_type == "QuantizeLinear"
            if kind == "Conv" and rounds and graph.constants[rounding.input[2]].dtype == np.uint8:
                _round_product(graph, node, x, weight, rounding)
            else:
                _sum_words(graph, node, x, weight)
            graph.find()
    graph.drop_unread()


def product_words(graph: Graph, node: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the words of a product of integers and their steps."""
    if node.op_type == "QLinearConv":
        words, step = (graph.constants[name] for name in node.input[3:5])
        return words, step
    # Words, perhaps plus a bias, cast to float32, times a scale which is input step × weight step.
    reader = graph.only_reader(node.output[0])
    while reader.op_type != "Mul":
        reader = graph.only_reader(reader.output[0])
    step = graph.constants[graph.writer[reader.input[1]].input[1]]
    return graph.constants[node.input[1]], step.ravel() if step.ndim else step


def _round_product(graph: Graph, conv: Any, x: Any, weight: Any, rounding: Any) -> None:
    inputs = [*x.input, *weight.input, *rounding.input[1:], *_bias(graph, conv)]
    product = make_node("QLinearConv", inputs, list(rounding.output))
    product.attribute.extend(conv.attribute)
    graph.replace(conv, product)
    graph.graph.node.remove(rounding)


def _sum_words(graph: Graph, node: Any, x: Any, weight: Any) -> None:
    name, (words, step, _) = node.output[0], weight.input
    # Along which dimension of the result the output channels lie: the second of a convolution, else the last.
    along = [-1, *[1] * (graph.constants[words].ndim - 2)] if node.op_type == "Conv" else [-1]

    def spread(constant: str) -> str:
        values = graph.constants[constant]
        return graph.add_constant(f"{constant}.spread", values.reshape(along)) if values.ndim else constant

    if attribute(node, "transB", 0):
        words = graph.add_constant(f"{words}.transposed", np.ascontiguousarray(graph.constants[words].T))
    product = make_node(
        "ConvInteger" if node.op_type == "Conv" else "MatMulInteger", [x.input[0], words, x.input[2]], [f"{name}.sums"]
    )
    if node.op_type == "Conv":
        product.attribute.extend(node.attribute)
    nodes = [product]
    for bias in _bias(graph, node):
        nodes.append(make_node("Add", [f"{name}.sums", spread(bias)], [f"{name}.biased"]))
    nodes += [
        make_node("Cast", [nodes[-1].output[0]], [f"{name}.float32"], to=np.float32),
        make_node("Mul", [x.input[1], spread(step)], [f"{name}.scale"]),
        make_node("Mul", [f"{name}.float32", f"{name}.scale"], [name]),
    ]
    graph.replace(node, *nodes)


def _bias(graph: Graph, node: Any) -> list[str]:
    """The name of a layer's bias in words, if it has one; zeros in float32 stand for none."""
    if len(node.input) < 3 or not node.input[2]:
        return []
    values = graph.constants.get(node.input[2])
    if values is not None:
        assert not values.any(), "what is not in words is added behind the layer"
        return []
    return [str(graph.writer[node.input[2]].input[0])]
