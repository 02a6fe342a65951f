"""Sessions of ONNX Runtime with the options that keep it from changing what a file says."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapt.export.backends import OPENERS
from adapt.export.extras import needs


def session(path: str | os.PathLike[str], *, optimized: bool = True, threads: int = 1) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU, so that it computes what the file says.

    Two options ensure this: files that round no activation are run without fusing their DequantizeLinear, which
    could round activations to 8 bits, and processors without VNNI get products that do not saturate.

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
    if not has_vnni():
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


def has_vnni() -> bool:
    """Whether the processor adds products of 8 bits in 32 bits. Others add pairs in 16 bits, which saturates."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


def runner(path: str | os.PathLike[str], *, optimized: bool = True) -> Callable[..., list[Tensor]]:
    """Return a function of the network's inputs that runs an ONNX file in a `session`, or a QONNX file in qonnx.

    It is what `adapt.export.verify` takes: `verify(exported, inputs, runner(path, optimized=False))`.

    Args:
        path: the file.
        optimized: as in `session`. qonnx runs the operators one by one in any case.
    """
    domains = {imported.domain for imported in needs("onnx", "onnx").load(path).opset_import}
    run = _in_qonnx(path) if "qonnx.custom_op.general" in domains else _in_session(path, optimized)

    def outputs(*inputs: Any) -> list[Tensor]:
        arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in inputs]
        return [torch.from_numpy(np.array(array)) for array in run(arrays)]

    return outputs


def _in_session(path: str | os.PathLike[str], optimized: bool) -> Callable[[list[Any]], Iterable[Any]]:
    opened = session(path, optimized=optimized)
    names = [slot.name for slot in opened.get_inputs()]
    return lambda arrays: opened.run(None, dict(zip(names, arrays, strict=True)))


def _in_qonnx(path: str | os.PathLike[str]) -> Callable[[list[Any]], Iterable[Any]]:
    needs("qonnx", "fpga")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    model = ModelWrapper(os.fspath(path))
    names = [value.name for value in model.graph.input]
    return lambda arrays: execute_onnx(model, dict(zip(names, arrays, strict=True))).values()


OPENERS[".onnx"] = lambda path, _: runner(path)
