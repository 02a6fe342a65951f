import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapt.kernels import set_backend
from adapt.kernels.counting import count_at_most, extremes, round_down

NUMBERS = st.one_of(st.floats(-4, 4), st.integers(-8, 8).map(lambda k: k / 2), st.floats(allow_nan=False))
SINGLES = st.one_of(st.integers(-8, 8).map(lambda k: k / 2), st.floats(allow_nan=False, width=32))
VALUES = st.one_of(
    hnp.arrays(np.float64, st.integers(0, 60), elements=NUMBERS),
    hnp.arrays(np.float32, st.integers(0, 60), elements=SINGLES),
)


@pytest.fixture(scope="module", params=["numba", "torch"])
def back_end(request):
    set_backend(request.param)
    yield
    set_backend(None)


def one_by_one(values, thresholds):
    return [sum(float(value) <= float(threshold) for value in values.flat) for threshold in thresholds.flat]


@pytest.mark.usefixtures("back_end")
class TestCountAtMost:
    @given(VALUES, hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=12), elements=NUMBERS))
    def test_counts_as_comparing_each_pair_would(self, values, thresholds):
        counts = count_at_most(torch.from_numpy(values), thresholds)
        assert counts.shape == thresholds.shape
        assert counts.ravel().tolist() == one_by_one(values, thresholds)

    @given(VALUES)
    def test_values_are_at_most_themselves(self, values):
        with np.errstate(over="ignore"):
            thresholds = np.concatenate([values, np.nextafter(values.astype(np.float64), -np.inf)]).astype(np.float64)
        counts = count_at_most(torch.from_numpy(values), thresholds)
        assert counts.tolist() == one_by_one(values, thresholds)

    @pytest.mark.covering(2)
    @pytest.mark.parametrize("n", [1, 5_000, 70_000, 400_000])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("tail", [1.0, 1e4, 1e30])
    def test_many_values(self, n, dtype, tail):
        generator = torch.Generator().manual_seed(n)
        values = torch.randn(n, generator=generator, dtype=torch.float64).mul(256).round().div(256).to(dtype)
        values[0] = tail
        thresholds = np.concatenate([np.arange(-1024, 1024) / 256, np.linspace(-tail, tail, 301), [np.inf, -np.inf]])
        expected = np.searchsorted(np.sort(values.to(torch.float64).numpy()), thresholds, side="right")
        assert np.array_equal(count_at_most(values, thresholds), expected)

    def test_layouts_and_no_thresholds(self):
        values = torch.arange(24.0).reshape(2, 3, 4)
        for same in (values, values.transpose(0, 2), values.permute(1, 2, 0)):
            assert count_at_most(same, np.array([[3.5, -1.0]])).tolist() == [[4, 0]]
        assert count_at_most(values[:, ::2, 1:], np.array([5.0, 23.0])).tolist() == [3, 12]
        assert count_at_most(torch.tensor(2.0), np.array([2.0])).tolist() == [1]
        assert count_at_most(values, np.zeros((3, 0))).shape == (3, 0)


@pytest.mark.usefixtures("back_end")
@given(hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(width=32)), st.booleans())
def test_extremes(values, wide):
    low, high = extremes(torch.from_numpy(values.astype(np.float64) if wide else values))
    if np.isnan(values).any():
        assert math.isnan(low) or math.isnan(high)
    else:
        assert (low, high) == (values.min(), values.max())


@pytest.mark.usefixtures("back_end")
def test_extremes_of_any_layout():
    values = torch.linspace(-3, 5, 120).reshape(4, 5, 6)
    for same in (values, values.permute(2, 0, 1), values[:, ::2], values[2, 3, 4]):
        assert extremes(same) == (same.min().item(), same.max().item())


@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_rounding_a_threshold_down_keeps_every_comparison(threshold, value):
    rounded = round_down(np.array([threshold]))
    assert rounded.dtype == np.float32
    assert (np.float32(value) <= rounded[0]) == (value <= threshold)


def test_rounding_down_at_the_ends():
    largest = float(np.finfo(np.float32).max)
    thresholds = np.array([math.inf, -math.inf, 1e300, -1e300, largest, 0.1])
    assert round_down(thresholds)[:5].tolist() == [math.inf, -math.inf, largest, -math.inf, largest]
    assert float(round_down(thresholds)[5]) < 0.1
