"""Means over positions in an ONNX file, which leaves their order of summation open."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.export.means import summation_order
from adapt.export.onnx_graph import Graph, attribute, make_node


def order_means(graph: Graph) -> None:
    """Sum means over all positions in the order in which torch sums them on this processor, where it is known.

    A sum in another order differs in its last bit, which rounding to a few bits occasionally turns into a whole step.
    CumSum adds one term after the other.
    """
    known = (*graph.graph.input, *graph.graph.value_info)
    sizes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in known}
    for mean in graph.nodes("ReduceMean"):
        size, axes = sizes.get(mean.input[0], []), graph.constants.get(mean.input[1])
        positions = list(range(2, len(size)))
        if axes is None or not positions or sorted(axes % len(size)) != positions or not all(size[2:]):
            continue
        order = summation_order(math.prod(size[2:]))
        if order is not None:
            _order_mean(graph, mean, math.prod(size[2:]), order)
    graph.find()


def _order_mean(graph: Graph, mean: Any, count: int, order: NDArray[np.int64]) -> None:
    name, result = mean.output[0], mean.input[0]
    nodes: list[Any] = []

    def append(kind: str, constant: str, values: NDArray[Any], **attributes: Any) -> None:
        """Append an operation on the latest result and a constant."""
        nonlocal result
        inputs, result = [result, graph.add_constant(f"{name}.{constant}", values)], f"{name}.{len(nodes)}"
        nodes.append(make_node(kind, inputs, [result], **attributes))

    order = order.reshape([size for size in order.shape if size > 1] or [1])
    if np.array_equal(order.ravel(), np.arange(count)):
        append("Reshape", "order", np.array([0, 0, *order.shape]))
    else:
        append("Reshape", "positions", np.array([0, 0, count]))
        append("Pad", "zero", np.array([0, 0, 0, 0, 0, 1]))
        append("Gather", "order", order, axis=2)
    for level in range(order.ndim):
        append("CumSum", f"axis_{level}", np.array(2))
        append("Gather", f"last_{level}", np.array(-1), axis=2)
    if attribute(mean, "keepdims", 1):
        append("Reshape", "shape", np.array([0, 0] + [1] * graph.constants[mean.input[1]].size))
    append("Div", "count", np.array(count, np.float32))
    nodes[-1].output[0] = name
    graph.replace(mean, *nodes)
