import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt.numerics import Precision
from adapt.rounding import quantize
from adapt.switching import divergence
from adapt.switching.divergence import below, bin_counts, bin_edges
from tests.references import adapt_equations as reference
from tests.switching.weights import tensors


@given(tensors(24), st.integers(1, 12), st.integers(2, 12), st.integers(-8, 12))
def test_equals_the_literal_equation(weights, resolution, word_length, fraction_length):
    w = torch.from_numpy(weights)
    quantized = quantize(w, Precision(word_length, fraction_length))
    expected = reference.divergence(weights, quantized.numpy(), resolution)
    assert divergence(w, quantized, resolution) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(tensors(200), st.integers(1, 60))
def test_is_zero_for_equal_tensors_and_never_negative(weights, resolution):
    w = torch.from_numpy(weights)
    assert divergence(w, w.clone(), resolution) == 0
    assert divergence(w, w * 0.75, resolution) >= 0


def test_a_lost_bit_costs_about_one_bit():
    w = torch.linspace(-1, 1, 128 * 64 + 1)[:-1]
    for lost in (1, 2, 3):
        # 128 bins of 1/64; a step of 1/64 · 2^lost leaves all but every 2^lost-th empty.
        assert divergence(w, quantize(w, Precision(9 - lost, 6 - lost)), 128) == pytest.approx(lost, abs=0.1)


def test_counts_of_one_pseudo_observation_by_hand():
    w, quantized = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    p, q = (1.5 / 4, 2.5 / 4), (2.5 / 4, 1.5 / 4)
    expected = p[0] * math.log2(p[0] / q[0]) + p[1] * math.log2(p[1] / q[1])
    assert divergence(w, quantized, 2) == pytest.approx(expected, rel=1e-12)


def test_a_value_on_an_edge_belongs_to_the_bin_above_and_outsiders_to_the_end_bins():
    thresholds = below(bin_edges(0.0, 4.0, 4))
    assert bin_counts(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), thresholds).tolist() == [1, 1, 1, 2]
    assert bin_counts(torch.tensor([-9.0, 9.0, 3.0]), thresholds).tolist() == [1, 0, 0, 2]


@given(tensors(200), st.integers(1, 60))
def test_bins_agree_with_numpy_histogram(weights, resolution):
    low, high = float(weights.min()), float(weights.max())
    if low == high:
        return
    ours = bin_counts(torch.from_numpy(weights), below(bin_edges(low, high, resolution)))
    edges = np.concatenate([[low], bin_edges(low, high, resolution), [high]])
    theirs, _ = np.histogram(weights.astype(np.float64), bins=edges)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_count_by_their_own_values(dtype):
    w = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantized = quantize(w, Precision(5, 2))
    expected = reference.divergence(w.to(torch.float64).numpy(), quantized.to(torch.float64).numpy(), 20)
    assert divergence(w, quantized, 20) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("resolution", [1, 2, 5, 150])
def test_a_range_beyond_float64_counts_as_any_other(resolution):
    scale = 2.0**1023
    w = torch.tensor([1.5, -1.5, 0.0, 0.3, -1.4, 1.1], dtype=torch.float64)
    quantized = w.round().clamp(-1, 1)
    assert divergence(w * scale, quantized * scale, resolution) == divergence(w, quantized, resolution)
    edges = bin_edges(-1.5, 1.5, resolution)
    assert bin_edges(-1.5 * scale, 1.5 * scale, resolution).tolist() == (edges * scale).tolist()


@pytest.mark.parametrize("w", [torch.zeros(0), torch.zeros(3, 0), torch.zeros(4), torch.full((2, 2), -7.5)])
def test_empty_and_constant_tensors_diverge_by_nothing(w):
    assert divergence(w, torch.zeros_like(w), 50) == 0


def test_layout_and_gradients_do_not_matter():
    w = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    quantized = quantize(w, Precision(4, 2))
    expected = divergence(w, quantized, 30)
    assert divergence(torch.nn.Parameter(w).to(memory_format=torch.channels_last), quantized, 30) == expected
    assert divergence(w.transpose(0, 2), quantized.transpose(0, 2), 30) == expected
    assert divergence(w.expand(2, 4, 3, 5, 5), quantized.expand(2, 4, 3, 5, 5), 30) > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_what_has_no_bin(bad):
    w, broken = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, bad, 2.0])
    with pytest.raises(ValueError, match="weights must be finite"):
        divergence(broken, w, 10)
    with pytest.raises(ValueError, match="quantized must be finite"):
        divergence(w, broken, 10)


def test_refuses_nonsense():
    w = torch.randn(3)
    with pytest.raises(ValueError, match="resolution must be at least 1 bin, got 0"):
        divergence(w, w, 0)
    with pytest.raises(TypeError, match=r"resolution must be a whole number of bins, got 2\.5"):
        divergence(w, w, 2.5)
    with pytest.raises(ValueError, match=r"quantized must have the shape of weights, \(3,\), got \(1, 3\)"):
        divergence(w, w[None], 10)
    with pytest.raises(TypeError, match=r"weights must be a floating-point tensor, got torch\.int64"):
        divergence(torch.arange(3), w, 10)
    with pytest.raises(TypeError, match="quantized must be a floating-point tensor, got list"):
        divergence(w, [1.0, 2.0, 3.0], 10)
