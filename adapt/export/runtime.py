"""Sessions of ONNX Runtime with the options that keep it from changing what a file says."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from adapt.export.extras import needs


def session(path: str | os.PathLike[str], *, optimized: bool = True, threads: int = 1) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU, so that it computes what the file says.

    Two options keep it to that: files that round no activation are run without fusing their DequantizeLinear, which
    would round activations to 8 bits, and processors without VNNI get products that do not saturate.

    Args:
        path: the file.
        optimized: let ONNX Runtime fuse and fold operators. Otherwise it runs them one by one, as the file has them.
        threads: threads within an operator.

    Returns:
        An onnxruntime.InferenceSession.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime are missing: pip install 'adapt-precision[onnx]'.
        RuntimeError: ONNX Runtime would round what the file does not round.
    """
    onnx, runtime = needs("onnx", "onnx"), needs("onnxruntime", "onnx")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(
        runtime.GraphOptimizationLevel, "ORT_ENABLE_ALL" if optimized else "ORT_DISABLE_ALL"
    )
    options.add_session_config_entry("session.x64quantprecision", "1")
    if "QuantizeLinear" not in kinds:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        opened = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        made = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    if "MatMulNBits" in made:
        raise RuntimeError(
            f"ONNX Runtime made MatMulNBits of {os.fspath(path)}, which rounds activations to 8 bits: open it with "
            "optimized=False, or export it again"
        )
    return opened


def run(opened: Any, inputs: Any) -> list[np.ndarray[Any, Any]]:
    """Return a session's outputs.

    Args:
        opened: what `session` returned.
        inputs: a tensor or a tuple of tensors, in the order of the network's arguments.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    feed = {
        slot.name: x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        for slot, x in zip(opened.get_inputs(), inputs, strict=True)
    }
    return list(opened.run(None, feed))
