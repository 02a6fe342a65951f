"""Networks with every kind of layer, trained in every kind of format, in everything that they leave in.

Where steps are powers of two, every output is the captured network's. Where they are not, integer products are rounded
once, and sums of rounded products depend on their order: outputs differ in their last bits, and a rounding now and then
falls a step aside.
"""

import pytest
import torch

import adapt
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
from tests.export.synthetic import outputs_of

RUNS = {
    "biases": lambda kind: adaptive(kind, activations=7, quantize_biases=True),
    "float32 biases": lambda kind: adaptive(kind, activations=8),
    "channels": lambda kind: adaptive(
        kind, adapt.AdaPT.compact(bits=5, channels=True, lookback=(1, 2)), activations=8, layer_bits={"*": (2, 8)}
    ),
    "powers of two": lambda kind: with_lsq(kind, power_of_two=True),
    "a power of two": lambda kind: with_lsq(kind, power_of_two=True, per_channel=False),
    "LSQ": with_lsq,
    "widths": with_widths,
    "AQT": with_aqt,
}
FREE = ("LSQ", "widths", "AQT")
"""Runs whose steps are no powers of two."""

KINDS = (Residual, Transposed, Separable, TransposedWeights)
FIRST = {
    (Separable, "biases"),
    (Transposed, "powers of two"),
    (TransposedWeights, "float32 biases"),
    (Residual, "channels"),
}
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
        if is_exact:
            found = verify(exported, inputs, runtime)
            assert found.is_equal, str(found)
        else:
            expected = torch.from_numpy(outputs_of(exported, inputs))
            is_close = torch.isclose(runtime(inputs)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
            assert is_close.double().mean() > 0.98


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
    is_transposed = any(getattr(part, "transposed", False) for part in exported.structure.modules())
    is_long = any(site.word_length > 8 for site in exported.sites.values())
    if form == "integer" and (is_transposed or is_long):
        with pytest.raises(ValueError, match=r"up is a transposed convolution|has words of \d+ bits as inputs"):
            to_onnx(exported, path, inputs[:2], form=form)
        return
    to_onnx(exported, path, inputs[:2], form=form)
    compare(trained, runner(path), runner(path, optimized=False))


def test_qonnx(trained, tmp_path):
    pytest.importorskip("qonnx")
    pytest.importorskip("onnxscript")
    exported, inputs, _ = trained
    to_qonnx(exported, tmp_path / "net.onnx", inputs)
    compare(trained, runner(tmp_path / "net.onnx"))
