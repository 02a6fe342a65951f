import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapt.switching import diversity, log_diversity
from tests.references import adapt_equations as reference

WINDOWS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.floats(-10, 10, allow_subnormal=False),
)


def from_running_sums(gradients):
    total, sum_of_norms = np.zeros_like(gradients[0]), 0.0
    for gradient in gradients:
        total += gradient
        sum_of_norms += float(np.linalg.norm(gradient))
    return diversity(sum_of_norms, float(np.linalg.norm(total)))


@given(WINDOWS)
def test_running_sums_agree_with_stored_gradients(gradients):
    expected = reference.diversity(gradients)
    if expected < 1e6:
        assert from_running_sums(gradients) == pytest.approx(expected, rel=1e-6)


@given(WINDOWS)
def test_is_at_least_one(gradients):
    assert from_running_sums(gradients) >= 1


@given(hnp.arrays(np.float64, 5, elements=st.floats(-10, 10)), st.integers(1, 30))
def test_equal_gradients_have_diversity_one(gradient, window):
    norm = float(np.linalg.norm(gradient))
    if norm > 0:
        assert diversity(window * norm, float(np.linalg.norm(window * gradient))) == pytest.approx(1)


def test_a_quotient_that_rounding_pushed_below_one_is_one():
    assert diversity(0.1 + 0.2, math.nextafter(0.1 + 0.2, 1)) == 1
    assert diversity(2.0, 1.0) == 2


@pytest.mark.parametrize(
    ("sum_of_norms", "norm_of_sum"),
    [(1.0, 0.0), (0.0, 0.0), (math.inf, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, math.inf), (1e300, 1e-300)],
)
def test_is_infinite_without_a_direction(sum_of_norms, norm_of_sum):
    assert diversity(sum_of_norms, norm_of_sum) == math.inf


@pytest.mark.parametrize("arguments", [(-1.0, 1.0), (1.0, -1.0), (1.0, -math.inf)])
def test_refuses_negative_norms(arguments):
    with pytest.raises(ValueError, match="must not be negative"):
        diversity(*arguments)


@given(st.floats())
def test_log_diversity_is_the_logarithm_or_one(delta):
    assert log_diversity(delta) == reference.log_diversity(delta)


def test_log_diversity_at_the_ends():
    assert log_diversity(math.e) == 1
    assert log_diversity(1.0) == 0
    assert [log_diversity(delta) for delta in (0.0, -3.0, math.inf, math.nan)] == [1, 1, 1, 1]
