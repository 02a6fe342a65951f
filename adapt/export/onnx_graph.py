"""What is done to an ONNX file after torch has written it: words in their own bits, fewer operators, no metadata."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEEPS_GRID = {"Relu", "MaxPool", "Reshape", "Flatten", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity"}
"""Operators whose results are values of their first input, or 0."""


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
        """Remove constants that no node reads."""
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


def shorten_words(graph: Graph) -> None:
    """Store int8 words that need no more in 4 bits, behind a Cast.

    ONNX Runtime folds the Cast when it loads the file. Without it 4 bits never become an integer product.
    """
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    for node in graph.nodes("DequantizeLinear"):
        name = node.input[0]
        words = graph.constants.get(name)
        if words is None or words.dtype != np.int8 or not words.size or words.min() < -8 or words.max() > 7:
            continue
        if len(graph.readers[name]) > 1:
            continue
        for tensor in graph.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(words.astype(ml_dtypes.int4), name))
        cast = helper.make_node("Cast", [name], [f"{name}.int8"], to=TensorProto.INT8)
        graph.insert(cast, before=node)
        node.input[0] = cast.output[0]
    graph.find()


def rounding_pairs(graph: Graph) -> Iterator[tuple[list[Any], tuple[str, ...]]]:
    """Every QuantizeLinear – (Clip) – DequantizeLinear, with step, zero point and bounds."""
    for first in graph.nodes("QuantizeLinear"):
        nodes, found = [first], tuple(first.input[1:])
        reader = graph.only_reader(first.output[0])
        if reader is not None and reader.op_type == "Clip":
            nodes, found = [*nodes, reader], (*found, *reader.input[1:])
            reader = graph.only_reader(reader.output[0])
        if reader is not None and reader.op_type == "DequantizeLinear":
            yield [*nodes, reader], found


def merge_roundings(graph: Graph) -> None:
    """Remove a rounding of what an equal rounding gave, with nothing between but operators that keep values or zero."""
    known: dict[str, tuple[Any, ...]] = {}
    for nodes, found in list(rounding_pairs(graph)):
        key = tuple(graph.constants[name].tobytes() for name in found)
        kind = graph.constants[found[1]].dtype
        source = nodes[0].input[0]
        while source not in known and (writer := graph.writer.get(source)) is not None:
            if writer.op_type not in _KEEPS_GRID:
                break
            source = writer.input[0]
        if known.get(source) == (kind, key):
            source = nodes[0].input[0]
            for node in nodes[:-1]:
                graph.graph.node.remove(node)
            graph.remove(nodes[-1], instead=source)
        else:
            known[nodes[-1].output[0]] = (kind, key)
