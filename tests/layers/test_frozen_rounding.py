"""Rounding that stays on a module rounds as its format does, and goes with the module wherever it goes."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapt import Precision
from adapt.layers import frozen_rounding
from adapt.layers.frozen_rounding import FrozenRounding
from adapt.numerics import Format


@st.composite
def formats(draw):
    """Formats of a whole tensor with any float32 step, signed or not."""
    signed, bits = draw(st.booleans()), draw(st.integers(1, 12))
    step = np.float32(draw(st.floats(2**-10, 4, width=32)))
    most = 1 if signed and bits == 1 else 2 ** (bits - signed) - 1
    high = draw(st.integers(1, most))
    low = (-1 if bits == 1 else -draw(st.integers(0, most))) if signed else 0
    return Format(bits, step, signed, low, high)


@given(formats(), st.lists(st.floats(width=32), max_size=20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_it_rounds_as_the_format_does_bit_for_bit(form, values, dtype):
    x = torch.tensor(values, dtype=torch.float32).to(dtype)
    found, expected = FrozenRounding("input", form).apply(x), form.quantize(x)
    assert found.dtype == dtype
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    if not (form.signed and form.word_length == 1):
        assert torch.equal(found.isnan(), expected.isnan())


def kept():
    """A network that rounds, and the one that does not."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model = copy.deepcopy(plain)
    form = Format.of(Precision(3, 1))
    frozen_rounding.keep(model, {"0.input": form, "2.output": form, "2.weight": form})
    return model, plain, form


def expected_of(plain, form, x):
    return form.quantize(plain(form.quantize(x)).detach())


@pytest.mark.parametrize("training", [True, False])
def test_inputs_and_outputs_are_rounded_in_every_mode_and_in_copies(training):
    model, plain, form = kept()
    x = torch.randn(6, 5)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(one.train(training)(x), expected_of(plain, form, x))


def test_removed_and_put_on_again():
    model, plain, form = kept()
    x = torch.randn(6, 5)
    removed = frozen_rounding.remove(model)
    assert set(removed) == {"0.input", "2.output"}
    assert torch.equal(model(x), plain(x))
    assert frozen_rounding.remove(model) == {}
    frozen_rounding.keep(model, removed)
    assert torch.equal(model(x), expected_of(plain, form, x))


def test_the_gradient_goes_straight_through():
    layer = nn.Linear(3, 2)
    frozen_rounding.keep(layer, {"input": Format.of(Precision(4, 2))})
    x = torch.randn(5, 3, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(5, 3))


def test_compiled_programs_round_too():
    model, plain, form = kept()
    x = torch.randn(6, 5)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), expected_of(plain, form, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_tracing_onnx_exporter_writes_the_rounding_too():
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, plain, form = kept()
    x, file = 3 * torch.randn(50, 5), io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False)
    session = runtime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.array_equal(found, expected_of(plain, form, x).numpy())
