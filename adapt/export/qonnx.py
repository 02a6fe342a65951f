"""`to_qonnx`, a captured network as a QONNX file: ONNX with Quant operators, whose words have any number of bits."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapt import files
from adapt.arguments import check_option
from adapt.export import onnx_graph
from adapt.export.exported import Exported
from adapt.export.extras import needs
from adapt.export.onnx import program, replace_norms
from adapt.export.onnx_means import order_means
from adapt.export.onnx_operators import BatchNorm, operator
from adapt.export.onnx_words import store_words
from adapt.numerics.format import Format

QUANT = "qonnx.custom_op.general::Quant"


def to_qonnx(exported: Exported, path: str | os.PathLike[str], inputs: Any, *, batch_norm: str = "exact") -> None:
    """Write a captured network as a QONNX file, for qonnx, FINN, hls4ml and other readers of Quant operators.

    A weight is stored in float32, followed by a Quant of its format that leaves every value as it is, which is QONNX's
    convention; one Quant rounds each activation. Words may have any number of bits.

    Args:
        exported: the captured network.
        path: the file. Its folder must exist.
        inputs: an example of the network's input, a tensor or a tuple of forward's positional arguments. The file takes
            inputs of its shape and no other, as QONNX's tools demand.
        batch_norm: "exact" computes batch normalisation and means over all positions as torch does, to the last bit;
            "operator" leaves them as one operator each, which other tools understand, but which round differently.

    Raises:
        ModuleNotFoundError: onnx or onnxscript are missing: pip install 'adapt-precision[fpga]'.
        ValueError: batch_norm is unknown.
        OSError: the folder does not exist or cannot be written.
    """
    check_option("batch_norm", batch_norm, ("exact", "operator"))
    write(exported, Path(path), inputs, norm=BatchNorm if batch_norm == "exact" else None)


def write(exported: Exported, path: Path, inputs: Any, *, norm: Callable[[nn.Module], nn.Module] | None = None) -> None:
    """Write a QONNX file; `norm` returns the replacement of each batch normalisation."""
    onnx = needs("onnx", "fpga")
    needs("onnx.shape_inference", "fpga")
    needs("onnxscript", "fpga")
    needs("torch.onnx.ops", "fpga")
    network = exported.module(rounding=Quant)
    if norm is not None:
        replace_norms(network, norm)
    store_words(network, exported, lambda words, form: Quantized(form.values(words), form), biases=True)
    model = program(network, inputs if isinstance(inputs, tuple) else (inputs,), free_batch=False)
    graph = onnx_graph.Graph(model)
    if norm is BatchNorm:
        order_means(graph)
    graph.drop_unread()
    # qonnx only runs nodes whose shapes it knows, and ONNX's own inference does not know Quant.
    shapes = list(model.graph.value_info)
    onnx_graph.strip_metadata(model)
    model.graph.value_info.extend(shapes)
    model = onnx.shape_inference.infer_shapes(model)
    with files.replacing(path) as file:
        file.write(model.SerializeToString())


class Quant(nn.Module):
    """Rounds by a Quant operator: half to even, saturating at the ends of the word, or of its symmetric range.

    Another range is clipped first.

    Args:
        form: the format.
        shape: of the tensors, along which the numbers of a format with channels broadcast.
    """

    step: Tensor
    zero: Tensor
    bits: Tensor

    def __init__(self, form: Format, *, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.signed = bool(np.all(form.signed))
        largest = 2.0 ** (form.word_length - self.signed) - 1
        self.narrow = self.signed and bool(np.all(form.low == -largest))
        lowest = -largest - (not self.narrow) if self.signed else 0.0 * largest
        is_sign = np.all(form.signed & (form.word_length == 1))
        self.clips = not is_sign and bool(np.any(form.high != largest) or np.any(form.low != lowest))
        self.bounds = float(np.max(form.minimum)), float(np.min(form.maximum))
        # qonnx takes a single number of bits.
        for name, values in (("step", form.step), ("zero", 0 * form.step)):
            self.register_buffer(name, torch.from_numpy(_along(np.array(values, np.float32), form, shape)))
        self.register_buffer("bits", torch.tensor(float(np.max(form.word_length))))

    def forward(self, x: Tensor) -> Tensor:
        """Q(x), of the shape of x."""
        if self.clips:
            x = x.clamp(*self.bounds)
        options = {"signed": int(self.signed), "narrow": int(self.narrow), "rounding_mode": "ROUND"}
        return operator(QUANT, (x, self.step, self.zero, self.bits), x, torch.float32, **options)


class Quantized(nn.Module):
    """A parametrisation: the parameter is its values, followed by a Quant operator."""

    values: Tensor

    def __init__(self, values: Tensor, form: Format) -> None:
        super().__init__()
        self.quant = Quant(form, shape=values.shape)
        self.quant.clips = False
        self.register_buffer("values", values)

    def forward(self, original: Tensor) -> Tensor:
        """The values."""
        return self.quant(self.values) if torch.compiler.is_exporting() else original


def _along(numbers: NDArray[np.float32], form: Format, shape: Sequence[int]) -> NDArray[np.float32]:
    """A format's numbers in a shape that broadcasts with tensors of this shape."""
    if form.axis is None:
        return numbers.reshape([1] * len(shape))
    if form.groups > 1:
        rows = np.repeat(numbers.reshape(form.groups, -1), shape[0] // form.groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))
    return numbers.reshape([-1 if axis == form.axis else 1 for axis in range(len(shape))])
