"""Form "integer" of an ONNX file through a generator of C code, for devices that run nothing else."""

import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from adapt.export import runner, to_onnx
from tests.export.synthetic import ConvNet, captured, mlp, outputs_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("emx_onnx_cgen")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no compiler"),
]


def compiled(path):
    """The function that gcc makes of what emx-onnx-cgen makes of a file, for one sample at a time."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(onnx.shape_inference.infer_shapes(model), path.with_suffix(".1.onnx"))
    source, library = path.with_suffix(".c"), path.with_suffix(".so")
    command = [sys.executable, "-m", "emx_onnx_cgen", "compile", "--model-name", "network"]
    subprocess.run([*command, path.with_suffix(".1.onnx"), source], check=True, capture_output=True)
    # The processor's rounding as C has it, without fused multiply-adds.
    subprocess.run(["gcc", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    network = ctypes.CDLL(str(library)).network

    def outputs(x, count):
        found = np.empty((len(x), count), np.float32)
        for sample, result in zip(x, found, strict=True):
            network(*(ctypes.c_void_p(array.ctypes.data) for array in (sample, result)))
        return found

    return outputs


@pytest.mark.parametrize("batch_norm", ["exact", "folded"])
@pytest.mark.parametrize(
    ("network", "shape"), [(mlp, (12,)), (ConvNet, (3, 8, 8)), (ConvNet, (3, 16, 16)), (ConvNet, (3, 14, 14))]
)
def test_the_generated_code_gives_the_same_bits(tmp_path, capsys, network, shape, batch_norm):
    exported = captured(network(), weights=5, activations=8)
    inputs = torch.randn(200, *shape, generator=torch.Generator().manual_seed(1))
    to_onnx(exported, tmp_path / "net.onnx", inputs, form="integer", batch_norm=batch_norm)
    expected = outputs_of(exported, inputs)
    if batch_norm == "folded":
        expected = runner(tmp_path / "net.onnx")(inputs)[0].numpy()
    found = compiled(tmp_path / "net.onnx")(np.ascontiguousarray(inputs.numpy()), expected.shape[1])
    np.testing.assert_array_equal(found, expected)
