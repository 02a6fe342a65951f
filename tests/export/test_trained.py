"""Networks with every kind of layer, trained in every kind of format, in everything that they leave in.

Where steps are powers of two, every output is the captured network's. Where they are not, runtimes divide by a step or
multiply by its reciprocal, and add rounded products in orders of their own: a rounding now and then falls a step aside.
"""

import pytest
import torch

from adapt.export import IntegerNetwork, capture, runner, to_onnx, to_qonnx, verify
from tests.export.networks import (
    Residual,
    Separable,
    Transposed,
    TransposedWeights,
    adaptive,
    inputs_of,
    with_aqt,
    with_lsq,
    with_widths,
)

RUNS = {
    "biases": lambda kind: adaptive(kind, activations=7, quantize_biases=True),
    "float32 biases": lambda kind: adaptive(kind, activations=8),
    "powers of two": lambda kind: with_lsq(kind, power_of_two=True),
    "a power of two": lambda kind: with_lsq(kind, power_of_two=True, per_channel=False),
    "LSQ": with_lsq,
    "widths": with_widths,
    "AQT": with_aqt,
}
FREE = ("LSQ", "widths", "AQT")
"""Runs whose steps are no powers of two."""

KINDS = (Residual, Transposed, Separable, TransposedWeights)
FIRST = {(Separable, "biases"), (Transposed, "powers of two"), (TransposedWeights, "float32 biases")}
"""What is fast to see; the others take a minute or two together."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (kind, name), marks=[] if (kind, name) in FIRST else pytest.mark.long, id=f"{kind.__name__}, {name}"
        )
        for kind in KINDS
        for name in RUNS
    ],
)
def trained(request):
    """What was captured, its inputs, and whether its steps are powers of two."""
    kind, name = request.param
    run = RUNS[name](kind)
    inputs = 1.5 * torch.randn(200, *inputs_of(kind).shape[1:], generator=torch.Generator().manual_seed(2))
    return capture(run.controller, inputs=run.inputs), inputs, name not in FREE


def compare(trained, *against):
    exported, inputs, is_exact = trained
    for runtime in against:
        found = verify(exported, inputs, runtime)
        assert found.is_equal if is_exact else found.share > 0.95, str(found)


def test_the_packed_file(trained, tmp_path):
    exported, inputs, _ = trained
    exported.save(tmp_path / "net.safetensors")
    assert verify(exported, inputs, tmp_path / "net.safetensors").is_equal


def test_the_integer_reference(trained):
    if trained[2]:
        compare(trained, IntegerNetwork(trained[0]))
    else:
        with pytest.raises(ValueError, match="powers of two"):
            IntegerNetwork(trained[0])


@pytest.mark.parametrize("form", ["qdq", "integer"])
def test_onnx(trained, form, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported, inputs, _ = trained
    path = tmp_path / "net.onnx"
    if form == "integer" and any(getattr(part, "transposed", False) for part in exported.structure.modules()):
        with pytest.raises(ValueError, match="up is a transposed convolution"):
            to_onnx(exported, path, inputs[:2], form=form)
        return
    to_onnx(exported, path, inputs[:2], form=form)
    compare(trained, runner(path), runner(path, optimized=False))


def test_qonnx(trained, tmp_path):
    pytest.importorskip("qonnx")
    pytest.importorskip("onnxscript")
    exported, inputs, _ = trained
    to_qonnx(exported, tmp_path / "net.onnx", inputs)
    compare(trained, tmp_path / "net.onnx")
