"""Means over positions have torch's bits in integers and in ONNX files, also where the next rounding is close."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from adapt.export import IntegerNetwork, runner, to_onnx, to_qonnx, verify
from adapt.export.dyadic import Dyadic
from adapt.export.integer_operations import OPERATIONS
from adapt.export.means import sum_in_order, summation_order
from tests.export.synthetic import captured

SIZES = st.integers(1, 40)


def pictures(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close_calls(height, width):
    """Pictures of three channels whose means lie within a few last bits of a tie between two words of ⟨8, 5⟩."""
    x = pictures(200, 3, height, width)
    tie = (x.double().mean((2, 3)) * 32).floor().add(0.5) / 32
    x[:, :, 0, 0] += ((tie - x.double().mean((2, 3))) * height * width).float()
    return x


def network(height, width):
    """A captured network that rounds the means of its inputs, and examples of which an exact mean would miss some."""
    exported = captured(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)), weights=5, activations=8)
    x, form = close_calls(height, width), exported.formats["2.input"]
    exact = x.double().mean((2, 3)).float()
    assert not torch.equal(form.quantize(exact), form.quantize(x.mean((2, 3))))
    return exported, x


@given(SIZES, SIZES)
@settings(max_examples=40, deadline=None)
def test_the_order_of_every_picture_is_known(height, width):
    x, order = pictures(2, 3, height, width), summation_order(height * width)
    assert order is not None
    total = sum_in_order(F.pad(x.flatten(2), (0, 1))[..., order], order.ndim, torch.add)
    assert torch.equal(total / (height * width), x.mean((2, 3)))


def test_what_follows_no_known_order_is_said(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "mean", lambda x, dim: x.sum(dim) / x.shape[1] + 1)
    assert summation_order.__wrapped__(64) is None


@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (3, 5, 7, 7), (2, 3, 49), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_integers_have_the_bits_of_means(shape, keepdim):
    x, dimensions = pictures(*shape), list(range(2, len(shape)))
    found = OPERATIONS["mean"](Dyadic.of(x), dimensions, keepdim).float()
    assert torch.equal(found, x.mean(dimensions, keepdim=keepdim))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 6), (1, 3)])
@pytest.mark.parametrize("window", [2, 3, 4])
def test_integers_have_the_bits_of_pooling(size, window):
    x = pictures(3, 5, 12, 18)
    found = OPERATIONS["adaptive_avg_pool2d"](Dyadic.of(x), size).float()
    assert torch.equal(found, F.adaptive_avg_pool2d(x, size))
    padding = window // 2
    found = OPERATIONS["avg_pool2d"](Dyadic.of(x), [window], [window], [padding]).float()
    assert torch.equal(found, F.avg_pool2d(x, window, padding=padding))


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (4, 4)])
def test_integers_round_means_beside_a_tie_as_torch_does(size):
    exported, x = network(*size)
    found = verify(exported, x, IntegerNetwork(exported))
    assert found.is_equal, found


@pytest.mark.parametrize(("form", "size"), [("qdq", (8, 8)), ("integer", (7, 7))])
def test_onnx_files_round_means_beside_a_tie_as_torch_does(tmp_path, size, form):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    exported, x = network(*size)
    to_onnx(exported, tmp_path / "a.onnx", x, form=form)
    for optimized in (False, True):
        found = verify(exported, x, runner(tmp_path / "a.onnx", optimized=optimized))
        assert found.is_equal, found


def test_qonnx_files_round_means_beside_a_tie_as_torch_does(tmp_path):
    pytest.importorskip("qonnx")
    exported, x = network(7, 7)
    to_qonnx(exported, tmp_path / "a.onnx", x)
    found = verify(exported, x, tmp_path / "a.onnx")
    assert found.is_equal, found
