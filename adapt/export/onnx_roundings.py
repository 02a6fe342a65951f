"""The roundings of an ONNX file, pairs of QuantizeLinear and DequantizeLinear: find, clip, merge and separate them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.export.onnx_graph import Graph, make_node


@dataclass(frozen=True)
class Rounding:
    """A QuantizeLinear, a Clip of its words where there is one, and the DequantizeLinear after them."""

    nodes: list[Any]
    step: NDArray[Any]
    zero: NDArray[Any]
    low: int
    high: int

    @property
    def source(self) -> str:
        """The tensor that is rounded."""
        return str(self.nodes[0].input[0])

    @property
    def result(self) -> str:
        """The rounded tensor."""
        return str(self.nodes[-1].output[0])

    def keeps(self, other: "Rounding") -> bool:
        """Return whether this rounding leaves every result of the other one unchanged."""
        same = np.array_equal(self.step, other.step) and np.array_equal(self.zero, other.zero)
        return same and self.zero.dtype == other.zero.dtype and self.low <= other.low and other.high <= self.high

    def remove(self, graph: Graph, *, instead: str) -> None:
        """Remove the rounding from a graph; its readers read `instead`."""
        *inner, last = self.nodes
        for node in inner:
            graph.graph.node.remove(node)
        graph.remove(last, instead=instead)


def roundings(graph: Graph) -> list[Rounding]:
    """Return every rounding of a graph, in order."""
    found = []
    for first in graph.nodes("QuantizeLinear"):
        nodes, (step, zero) = [first], (graph.constants[name] for name in first.input[1:])
        low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
        reader = graph.only_reader(first.output[0])
        if reader is not None and reader.op_type == "Clip":
            nodes.append(reader)
            low, high = (int(graph.constants[name]) for name in reader.input[1:])
            reader = graph.only_reader(reader.output[0])
        if reader is not None and reader.op_type == "DequantizeLinear":
            found.append(Rounding([*nodes, reader], step, zero, int(low), int(high)))
    return found


def clip(graph: Graph, rounding: Rounding, low: int, high: int) -> None:
    """Clip a rounding's words to this range."""
    quantize, *clips, dequantize = rounding.nodes
    words = quantize.output[0]
    ends = [
        graph.add_constant(f"{words}.{name}", np.array(word, rounding.zero.dtype))
        for name, word in (("low", low), ("high", high))
    ]
    node = make_node("Clip", [words, *ends], [f"{words}.clipped"])
    graph.insert(node, before=dequantize)
    dequantize.input[0] = node.output[0]
    for old in clips:
        graph.graph.node.remove(old)
    graph.find()


def absorb_relus(graph: Graph) -> None:
    """Clip words at zero instead of applying ReLU to values, which would keep the products around it in float32.

    A ReLU after a rounding, or before it, sets the same words to zero.
    """
    for rounding in roundings(graph):
        if rounding.zero.dtype != np.uint8:
            continue
        behind, before = graph.only_reader(rounding.result), graph.writer.get(rounding.source)
        if before is not None and (before.op_type != "Relu" or graph.only_reader(rounding.source) is None):
            before = None
        if behind is not None and behind.op_type != "Relu":
            behind = None
        if (behind is not None or before is not None) and rounding.low < rounding.zero:
            clip(graph, rounding, int(rounding.zero), rounding.high)
        if behind is not None:
            graph.remove(behind, instead=rounding.result)
        if before is not None:
            graph.remove(before, instead=before.input[0])


def merge_roundings(graph: Graph) -> None:
    """Remove every rounding of what another one has just rounded, where it changes nothing."""
    known: dict[str, Rounding] = {}
    for rounding in roundings(graph):
        before = known.get(rounding.source)
        if before is not None and rounding.keeps(before):
            rounding.remove(graph, instead=rounding.source)
        else:
            known[rounding.result] = rounding


def separate_roundings(graph: Graph) -> None:
    """Keep ONNX Runtime from making one rounding of two that follow each other, by a Clip between them.

    Its DoubleQDQPairsRemover rounds once where the file rounds in one step and then in another.
    """
    found = roundings(graph)
    sources = {rounding.source for rounding in found}
    for rounding in found:
        if rounding.result in sources and len(rounding.nodes) == 2 and rounding.zero.dtype == np.uint8:
            clip(graph, rounding, rounding.low, rounding.high)
