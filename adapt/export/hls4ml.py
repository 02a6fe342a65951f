"""`to_hls4ml`, a captured network as an hls4ml project whose fixed-point types hold every sum."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.export.exported import Exported
from adapt.export.extras import needs
from adapt.export.hls4ml_types import precisions
from adapt.export.onnx_graph import Graph
from adapt.export.onnx_operators import BatchNorm
from adapt.export.qonnx import write
from adapt.torch_internals import ConvNd

_UNROUNDED = "fixed<32,16>"
"""The type of inputs that the network does not round."""


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
        path: the folder of the project, which is created.
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
                f"{name} has {form}, but the steps of fixed point are powers of two: train with adapt.attach, or "
                "export to ONNX"
            )
        if bool(np.any(form.signed & (form.word_length == 1))):
            raise ValueError(
                f"{name} has one signed bit, a type without zero, which hls4ml does not have: train it with 2 bits"
            )


def check_layers(exported: Exported) -> None:
    """Refuse convolutions that hls4ml's QONNX reader misreads or does not support.

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
            else "has three dimensions, but hls4ml has convolutions of one and two"
            if len(layer.kernel_size) > 2
            else f"has {layer.groups} groups, but hls4ml has one group or one per channel: train it with either"
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
        write(exported, file, inputs, norm=_Float32BatchNorm)
        model = cleanup_model(cleanup_model(ModelWrapper(os.fspath(file))).transform(GemmToMatMul()))
    if _is_channels_last(exported, inputs):
        model = cleanup_model(model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True)))
    return model


class _Float32BatchNorm(BatchNorm):
    """x·α + β in float32, as a batch normalisation with mean 0 and variance 1: γ and β are torch's own factors."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        self.float()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, …] to the same."""
        return F.batch_norm(x, self.mean, self.variance, self.scale, self.shift, eps=0.0)
