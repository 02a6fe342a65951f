"""The graph of an ONNX model, and changes to it after torch has written it: shorter words, fewer operators."""

from collections import defaultdict
from collections.abc import Sequence
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
        """Find out again which nodes write and read each tensor."""
        self.writer = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in self.graph.output}

    def nodes(self, kind: str) -> list[Any]:
        """Return the nodes of one kind, in their order."""
        return [node for node in self.graph.node if node.op_type == kind]

    def only_reader(self, name: str) -> Any:
        """Return the only node that reads a tensor; None if there are several, or if the tensor is an output."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def remove(self, node: Any, *, instead: str) -> None:
        """Remove a node of one output; its readers read `instead`."""
        (output,) = node.output
        if output in self.outputs:
            # The network's output keeps its name, so what `instead` names is renamed.
            writer = self.writer[instead]
            writer.output[list(writer.output).index(instead)] = output
            self.rename_inputs(instead, output)
        else:
            self.rename_inputs(output, instead)
        self.graph.node.remove(node)
        self.find()

    def rename_inputs(self, before: str, after: str) -> None:
        """Let the nodes that read the tensor `before` read `after`."""
        for reader in self.readers[before]:
            for index, name in enumerate(reader.input):
                if name == before:
                    reader.input[index] = after

    def insert(self, *nodes: Any, before: Any) -> None:
        """Insert nodes, in this order, before another one."""
        for node in nodes:
            self.graph.node.insert(list(self.graph.node).index(before), node)

    def replace(self, node: Any, *others: Any) -> None:
        """Replace one node by others, in this order."""
        self.insert(*others, before=node)
        self.graph.node.remove(node)

    def store(self, name: str, values: NDArray[Any]) -> None:
        """Replace the stored values of a constant; `constants` keeps those that were read."""
        from onnx import numpy_helper

        (tensor,) = (tensor for tensor in self.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

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


def make_node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """Return a new node; attributes that are NumPy types become ONNX's."""
    from onnx import helper

    types = {n: helper.np_dtype_to_tensor_dtype(np.dtype(v)) for n, v in attributes.items() if isinstance(v, type)}
    return helper.make_node(kind, inputs, outputs, **{**attributes, **types})


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return the value of a node's attribute."""
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def strip_metadata(model: Any) -> None:
    """Remove the exporter's notes about the Python code, which can outweigh the words."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def transpose_weights(graph: Graph) -> None:
    """Store the words of a matrix as they are read, instead of transposing their values: DQ – Transpose becomes DQ."""
    for node in graph.nodes("Transpose"):
        dequantize = graph.writer.get(node.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in graph.constants:
            continue
        words, axes = graph.constants[dequantize.input[0]], list(attribute(node, "perm", [1, 0]))
        if words.ndim != 2 or graph.only_reader(node.input[0]) is None:
            continue
        graph.store(dequantize.input[0], np.ascontiguousarray(words.T))
        graph.constants[dequantize.input[0]] = words.T
        for found in dequantize.attribute:
            if found.name == "axis":
                found.i = axes.index(found.i)
        graph.remove(node, instead=dequantize.output[0])


def keep_float32(graph: Graph) -> None:
    """Multiply weights that stay in float32 by a 1 that ONNX Runtime does not fold.

    Its WeightBiasQuantization silently rounds constant weights and biases between two roundings to integers.
    """
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
                graph.graph.node.insert(0, make_node("DequantizeLinear", inputs, [one]))
            kept = f"{node.output[0]}.float32_{index}"
            graph.insert(make_node("Mul", [name, one], [kept]), before=node)
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
    """Store int8 words in 4 bits where these suffice, followed by a Cast, or by a Mul if all words share a factor.

    ONNX Runtime folds both when it loads the file. Without the Cast 4 bits never become an integer product.
    """
    import ml_dtypes

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
        graph.store(name, short.astype(ml_dtypes.int4))
        cast = partial(make_node, "Cast")
        if short is words:
            nodes = [cast([name], [f"{name}.int8"], to=np.int8)]
        else:
            wide, product = f"{name}.int32", f"{name}.multiple"  # no runtime multiplies in 8 bits
            constant = graph.add_constant(f"{name}.factor", np.array(factor, np.int32))
            nodes = [
                cast([name], [wide], to=np.int32),
                make_node("Mul", [wide, constant], [product]),
                cast([product], [f"{name}.int8"], to=np.int8),
            ]
        graph.insert(*nodes, before=node)
        node.input[0] = f"{name}.int8"
    graph.find()
