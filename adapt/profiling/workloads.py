"""Single layers to measure: in float32 and bfloat16 with torch, in 8 bits with ONNX Runtime."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from adapt.perfmodel import Layer, network_layers

Call = Callable[[], object]

WIDTHS = (32, 16, 8)
"""Bits: float32 and bfloat16 in torch; in ONNX Runtime unsigned activations and signed weights of 8 bits."""


@dataclass(frozen=True)
class Workload:
    """A layer without bias, and a batch for it.

    Attributes:
        kind: "convolution", "pointwise", "depthwise" or "linear".
        batch: samples; for a linear layer, rows.
        inputs, outputs: channels.
        size: pixels on each side of the square input; 1 for a linear layer.
        kernel, stride: those of a convolution, which is padded to keep the size.
    """

    kind: str
    batch: int
    inputs: int
    outputs: int
    size: int = 1
    kernel: int = 1
    stride: int = 1

    @property
    def groups(self) -> int:
        """Groups of a convolution; in a depthwise one, as many as channels."""
        return self.inputs if self.kind == "depthwise" else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input batch."""
        return (self.batch, self.inputs) if self.kind == "linear" else (self.batch, self.inputs, self.size, self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        sides = () if self.kind == "linear" else (self.kernel, self.kernel)
        return (self.outputs, self.inputs // self.groups, *sides)

    def module(self) -> nn.Module:
        """Return the layer in evaluation mode."""
        if self.kind == "linear":
            return nn.Linear(self.inputs, self.outputs, bias=False).eval()
        return nn.Conv2d(
            self.inputs,
            self.outputs,
            self.kernel,
            stride=self.stride,
            padding=self.kernel // 2,
            groups=self.groups,
            bias=False,
        ).eval()

    def layer(self) -> Layer:
        """Return the layer as the cost models see it."""
        with torch.device("meta"):
            (layer,) = network_layers(self.module(), torch.empty(self.shape))
        return layer

    def call(self, bits: int) -> Call:
        """Return a function that runs the layer once on random numbers.

        Raises:
            ModuleNotFoundError: 8 bits need onnx and onnxruntime.
        """
        return _in_onnxruntime(self) if bits == 8 else _in_torch(self, torch.float32 if bits == 32 else torch.bfloat16)


def runnable_widths() -> tuple[int, ...]:
    """Return the `WIDTHS` that can be run here."""
    has_runtime = all(map(importlib.util.find_spec, ("onnx", "onnxruntime")))
    return WIDTHS if has_runtime else tuple(bits for bits in WIDTHS if bits != 8)


def _in_torch(workload: Workload, dtype: torch.dtype) -> Call:
    module, x = workload.module().to(dtype), torch.randn(workload.shape).to(dtype)

    def run() -> Tensor:
        with torch.inference_mode():
            return module(x)  # type: ignore[no-any-return]

    return run


def _in_onnxruntime(workload: Workload) -> Call:
    """Return a call of one operator, QLinearConv or QLinearMatMul, with integer input and output."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = generator.integers(-127, 128, workload.weight_shape).astype(np.int8)
    pixels = -(-workload.size // workload.stride)
    linear = workload.kind == "linear"
    result = (workload.batch, workload.outputs) if linear else (workload.batch, workload.outputs, pixels, pixels)
    constants = {
        "x_step": np.float32(0.1), "x_zero": np.uint8(0),
        "w": weights.T.copy() if linear else weights, "w_step": np.float32(0.01), "w_zero": np.int8(0),
        "y_step": np.float32(1.0), "y_zero": np.uint8(0),
    }  # fmt: skip
    names = ["x", "x_step", "x_zero", "w", "w_step", "w_zero", "y_step", "y_zero"]
    if linear:
        node = helper.make_node("QLinearMatMul", names, ["y"])
    else:
        sides = {"kernel_shape": [workload.kernel] * 2, "strides": [workload.stride] * 2}
        padding = [workload.kernel // 2] * 4
        node = helper.make_node("QLinearConv", names, ["y"], group=workload.groups, pads=padding, **sides)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, workload.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, result)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = {"x": generator.integers(0, 256, workload.shape).astype(np.uint8)}
    return lambda: session.run(None, batch)
