"""The random stream against its definition and against the uniform distribution; the layouts that are accepted.

Every statistic below compares with a bound that an ideal stream exceeds with a probability below 1e-6.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adapt.kernels.stream import is_dense, require_layout
from adapt.kernels.torch_.weights import uniform
from adapt.rounding import stream_keys
from tests.references import fixed_point

ERROR = 1e-6
Z = stats.norm.isf(ERROR / 2)


def draws(key, numel, offset=0):
    return uniform(numel, int(key), offset, dtype=torch.float64, device=torch.device("cpu")).numpy()


def z_of_mean(values, mean, deviation):
    return (values.mean() - mean) / (deviation / math.sqrt(values.size))


def correlation_z(a, b):
    return z_of_mean((a - 0.5) * (b - 0.5), 0.0, 1 / 12)


@given(key=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**40))
def test_draws_follow_the_definition(key, offset):
    assert draws(key, 9, offset).tolist() == [float(fixed_point.uniform(key, offset + i)) for i in range(9)]


def test_the_index_wraps_at_32_bits():
    assert np.array_equal(draws(1234, 8, 2**32 - 4)[4:], draws(1234, 4))


@pytest.fixture(scope="module")
def matrix():
    """Draws [step, layer, element] as training takes them."""
    names = [f"layers.{i}.weight" for i in range(16)]
    return np.array([[draws(key, 4096) for key in stream_keys(0, step, names)] for step in range(64)])


def test_mean_and_variance(matrix):
    assert abs(z_of_mean(matrix, 0.5 - 2**-25, math.sqrt(1 / 12))) < Z
    assert abs(z_of_mean((matrix - 0.5) ** 2, 1 / 12, math.sqrt(1 / 180))) < Z


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_steps_layers_and_elements_are_not_correlated(matrix, axis):
    for lag in (1, 2, 3, 8):
        ahead, behind = np.split(matrix, [lag], axis)[1], np.split(matrix, [-lag], axis)[0]
        assert abs(correlation_z(ahead, behind)) < Z


def test_elements_far_apart_are_not_correlated(matrix):
    for lag in (16, 64, 256, 1024, 2048):
        assert abs(correlation_z(matrix[..., lag:], matrix[..., :-lag])) < Z


@pytest.mark.parametrize("buckets", [2, 16, 251, 1024])
def test_draws_fill_all_buckets_evenly_but_not_too_evenly(matrix, buckets):
    counts = np.bincount((matrix * buckets).astype(int).ravel(), minlength=buckets)
    p = stats.chisquare(counts).pvalue
    assert ERROR / 2 < p < 1 - ERROR / 2


def test_pairs_of_neighbours_fill_the_square_evenly(matrix):
    cells = (matrix * 32).astype(int)
    for first, second in (
        (cells[..., 1:], cells[..., :-1]),
        (cells[1:], cells[:-1]),
        (cells[:, 1:], cells[:, :-1]),
    ):
        p = stats.chisquare(np.bincount((first * 32 + second).ravel(), minlength=1024)).pvalue
        assert ERROR / 2 < p < 1 - ERROR / 2


def test_every_bit_is_balanced_and_independent_of_the_others(matrix):
    bits = ((matrix[::16].ravel() * 2**24).astype(np.int64)[:, None] >> np.arange(24)) & 1
    signs = (2 * bits - 1).astype(np.float64)
    scores = signs.T @ signs / math.sqrt(len(signs))
    scores[np.diag_indices(24)] = signs.sum(axis=0) / math.sqrt(len(signs))
    assert np.abs(scores).max() < stats.norm.isf(ERROR / 2 / 300)


@pytest.mark.parametrize("numel", [1, 16, 288, 1000])
def test_sums_over_a_layer_scatter_as_sums_of_independent_draws_do(numel):
    """Over 4096 steps: a stream whose keys only permute or shift one set of draws fails here, by far."""
    sums = np.array([draws(stream_keys(3, step, ["weight"])[0], numel).sum() for step in range(4096)])
    squares = ((sums - numel / 2) ** 2 / (numel / 12)).sum()
    # For one draw the fourth moment is smaller than the normal one's, so the bound is on the safe side.
    assert ERROR / 2 < stats.chi2.sf(squares, 4096) < 1 - ERROR / 2


@pytest.mark.parametrize("key", [0, 0x0123456789ABCDEF])
def test_flipping_one_bit_of_the_index_flips_half_of_the_bits(key):
    """The low half of the key enters in the same place; the high half joins later, mixed already by its making."""
    index = np.arange(4096)
    plain = (draws(key, 4096) * 2**24).astype(np.int64)
    for bit in range(32):
        flipped = plain[index ^ (1 << bit)] if bit < 12 else (draws(key, 4096, 1 << bit) * 2**24).astype(np.int64)
        changed = ((plain ^ flipped)[:, None] >> np.arange(24)) & 1
        assert abs(changed.mean() - 0.5) < 0.02, f"bit {bit}"
        assert abs(changed.mean(axis=0) - 0.5).max() < 0.06, f"bit {bit}"


def test_dense_layouts_are_recognised():
    x = torch.zeros(4, 6, 5, 3)
    dense = [x, x.permute(2, 0, 3, 1), x.to(memory_format=torch.channels_last), x[1], torch.zeros(()), x[:0, ::2]]
    assert all(map(is_dense, dense))
    holed = [x[:, ::2], x[..., 0], x[:, 1], torch.zeros(1, 4).expand(3, 4), x.permute(2, 0, 3, 1)[1:, :, :2]]
    assert not any(map(is_dense, holed))


def test_layout_returns_the_sizes_and_ignores_irrelevant_strides():
    pointwise = torch.zeros(8, 4, 1, 1)
    assert require_layout(torch.float32, a=[pointwise], b=[pointwise.to(memory_format=torch.channels_last)]) == (32,)
    assert require_layout(None, a=[pointwise, torch.zeros(3)], b=[None, torch.ones(3)]) == (32, 3)


@pytest.mark.parametrize(
    ("dtype", "lists", "error", "words"),
    [
        (None, {"a": [torch.zeros(3)], "b": []}, ValueError, "b has 0 tensors and a has 1"),
        (None, {"a": [torch.zeros(4, 4)[:, ::2]]}, ValueError, r"a\[0\] is not dense .*contiguous"),
        (None, {"a": [torch.zeros(2, 3)], "b": [torch.zeros(3, 2).t()]}, ValueError, r"b\[0\] .*does not match a\[0\]"),
        (None, {"a": [torch.zeros(6)], "b": [torch.zeros(5)]}, ValueError, r"b\[0\]"),
        (None, {"a": [torch.zeros(2)], "b": [torch.zeros(2, device="meta")]}, ValueError, "cpu.*meta.*one device"),
        (None, {"a": [torch.zeros(2)], "b": [torch.zeros(2).double()]}, TypeError, "one type at a time"),
        (torch.float32, {"a": [torch.zeros(2).half()]}, TypeError, "float16.*takes torch.float32"),
    ],
)
def test_layouts_that_do_not_match_are_refused(dtype, lists, error, words):
    with pytest.raises(error, match=words):
        require_layout(dtype, **lists)
