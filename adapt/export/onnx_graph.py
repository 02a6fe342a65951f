"""What is done to an ONNX file after torch has written it: words in their own bits, fewer operators, no metadata."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Graph:
    """An ONNX model's main graph, with its nodes found by what they write and read."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model, self.graph = model, model.graph
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer
        }
        self.find()

    def find(self) -> None:
        """Look again who writes and reads what."""
        self.writer = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in self.graph.output}

    def nodes(self, kind: str) -> list[Any]:
        """The nodes of one kind, in their order."""
        return [node for node in self.graph.node if node.op_type == kind]

    def only_reader(self, name: str) -> Any:
        """The single node that reads a tensor, or None where there are more, or the network's own output is read."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def remove(self, node: Any, *, instead: str) -> None:
        """Take a node of one output away; what read it reads `instead`."""
        (output,) = node.output
        if output in self.outputs:
            # The name of the network's output stays.
            for name in [instead]:
                writer = self.writer[name]
                writer.output[list(writer.output).index(name)] = output
                for reader in self.readers[name]:
                    _rename(reader, name, output)
        else:
            for reader in self.readers[output]:
                _rename(reader, output, instead)
        self.graph.node.remove(node)
        self.find()

    def insert(self, node: Any, *, before: Any) -> None:
        """Put a node in front of another one."""
        self.graph.node.insert(list(self.graph.node).index(before), node)

    def add_constant(self, name: str, values: NDArray[Any]) -> str:
        """Store a constant under this name, or a free one like it, and return the name."""
        from onnx import numpy_helper

        free, count = name, 1
        while free in self.constants:
            free, count = f"{name}_{count}", count + 1
        self.constants[free] = values
        self.graph.initializer.append(numpy_helper.from_array(values, free))
        return free

    def drop_unread(self) -> None:
        """Remove nodes and constants that nothing reads."""
        self.find()
        for node in reversed(list(self.graph.node)):
            if not any(self.readers[name] or name in self.outputs for name in node.output):
                self.graph.node.remove(node)
                self.find()
        kept = [tensor for tensor in self.graph.initializer if self.readers[tensor.name] or tensor.name in self.outputs]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _rename(node: Any, before: str, after: str) -> None:
    for index, name in enumerate(node.input):
        if name == before:
            node.input[index] = after


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def strip_metadata(model: Any) -> None:
    """Remove what the exporter notes about the Python that it came from, which can outweigh the words."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def transpose_weights(graph: Graph) -> None:
    """Store the words of a matrix as they are read, instead of transposing their values: DQ – Transpose becomes DQ."""
    from onnx import numpy_helper

    for node in graph.nodes("Transpose"):
        dequantize = graph.writer.get(node.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in graph.constants:
            continue
        words, axes = graph.constants[dequantize.input[0]], list(attribute(node, "perm", [1, 0]))
        if words.ndim != 2 or graph.only_reader(node.input[0]) is None:
            continue
        for tensor in graph.graph.initializer:
            if tensor.name == dequantize.input[0]:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(words.T), tensor.name))
        graph.constants[dequantize.input[0]] = words.T
        for found in dequantize.attribute:
            if found.name == "axis":
                found.i = axes.index(found.i)
        graph.remove(node, instead=dequantize.output[0])


def keep_float32(graph: Graph) -> None:
    """Multiply weights that stay in float32 by a 1 that ONNX Runtime does not fold.

    Its WeightBiasQuantization rounds constant weights and biases between two roundings to integers without a word.
    """
    from onnx import helper

    if not graph.nodes("QuantizeLinear"):
        return
    one = ""
    for node in [found for kind in ("Conv", "ConvTranspose", "Gemm") for found in graph.nodes(kind)]:
        for index, name in enumerate(node.input):
            values = graph.constants.get(name)
            if index == 0 or values is None or values.dtype != np.float32 or not values.any():
                continue
            if not one:
                parts = (("word", np.array(1, np.int8)), ("step", np.float32(1)), ("zero", np.array(0, np.int8)))
                inputs = [graph.add_constant(f"one.{part}", np.array(value)) for part, value in parts]
                one = "one"
                graph.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [one]))
            kept = f"{node.output[0]}.float32_{index}"
            graph.insert(helper.make_node("Mul", [name, one], [kept]), before=node)
            node.input[index] = kept
    graph.find()


def separate_zeros(graph: Graph) -> None:
    """Give every DequantizeLinear of words its own zero point.

    torch's exporter shares equal constants, but ONNX Runtime's pass from int8 to uint8 words, which
    session.x64quantprecision asks for, fails to load a file in which two weights share theirs.
    """
    for node in graph.nodes("DequantizeLinear"):
        words, zero = node.input[0], node.input[2]
        if words in graph.constants and len(graph.readers[zero]) > 1:
            node.input[2] = graph.add_constant(f"{words}.zero", graph.constants[zero])
            graph.find()


def shorten_words(graph: Graph) -> None:
    """Store int8 words that need no more in 4 bits, behind a Cast, and those that are multiples of them behind a Mul.

    ONNX Runtime folds both when it loads the file. Without the Cast 4 bits never become an integer product.
    """
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    for node in graph.nodes("DequantizeLinear"):
        name = node.input[0]
        words = graph.constants.get(name)
        if words is None or words.dtype != np.int8 or words.size == 1 or not words.any():
            continue
        if len(graph.readers[name]) > 1:
            continue
        common = int(np.bitwise_or.reduce(words, axis=None))
        factor = common & -common  # the largest power of two that divides them all
        if words.min() < -8 * factor or words.max() > 7 * factor:
            continue
        short = words // factor if words.min() < -8 or words.max() > 7 else words
        for tensor in graph.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(short.astype(ml_dtypes.int4), name))
        cast = partial(helper.make_node, "Cast")
        if short is words:
            nodes = [cast([name], [f"{name}.int8"], to=TensorProto.INT8)]
        else:
            wide, product = f"{name}.int32", f"{name}.multiple"  # no runtime multiplies in 8 bits
            constant = graph.add_constant(f"{name}.factor", np.array(factor, np.int32))
            nodes = [
                cast([name], [wide], to=TensorProto.INT32),
                helper.make_node("Mul", [wide, constant], [product]),
                cast([product], [f"{name}.int8"], to=TensorProto.INT8),
            ]
        for made in nodes:
            graph.insert(made, before=node)
        node.input[0] = f"{name}.int8"
    graph.find()


@dataclass(frozen=True)
class Rounding:
    """A QuantizeLinear, a Clip of its words where there is one, and the DequantizeLinear behind them."""

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
        """Whether everything that the other one gives stays as it is."""
        same = np.array_equal(self.step, other.step) and np.array_equal(self.zero, other.zero)
        return same and self.zero.dtype == other.zero.dtype and self.low <= other.low and other.high <= self.high


def roundings(graph: Graph) -> list[Rounding]:
    """Every rounding of a graph, in order."""
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
    from onnx import helper

    quantize, *clips, dequantize = rounding.nodes
    words = quantize.output[0]
    ends = [
        graph.add_constant(f"{words}.{name}", np.array(word, rounding.zero.dtype))
        for name, word in (("low", low), ("high", high))
    ]
    node = helper.make_node("Clip", [words, *ends], [f"{words}.clipped"])
    graph.insert(node, before=dequantize)
    dequantize.input[0] = node.output[0]
    for old in clips:
        graph.graph.node.remove(old)
    graph.find()


def absorb_relus(graph: Graph) -> None:
    """Clip words at zero instead of applying ReLU to values, which would keep the products around it in float32.

    A ReLU behind a rounding, or in front of it, sets the same words to zero.
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
            *inner, last = rounding.nodes
            for node in inner:
                graph.graph.node.remove(node)
            graph.remove(last, instead=rounding.source)
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
