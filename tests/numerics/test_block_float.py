"""Block floating point: the scale of a tensor against exact arithmetic, at every edge of the formats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.numerics import HIGHEST_FRACTION, LOWEST_FRACTION, BlockFloat, Precision, block_precision
from adapt.numerics.block_float import LARGEST
from tests.references import muppet

WORDS = st.integers(2, 32)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-8, 8, width=32)


@given(st.lists(st.one_of(FLOATS, SMALL), min_size=1, max_size=5), WORDS)
def test_the_scale_is_the_largest_at_which_all_values_fit(values, word_length):
    precision = block_precision(min(values), max(values), word_length)
    assert precision == Precision(word_length, muppet.block_scale(values, word_length))


@given(st.lists(SMALL, min_size=1, max_size=9), WORDS)
def test_rounding_saturates_by_at_most_half_a_step(values, word_length):
    precision = block_precision(min(values), max(values), word_length)
    x = torch.tensor(values, dtype=torch.float64)
    error = (adapt.quantize(x, precision) - x).abs().max().item()
    assert error <= precision.step / 2
    if any(values) and precision.fraction_length < HIGHEST_FRACTION:
        # One bit finer would clip.
        finer = Precision(word_length, precision.fraction_length + 1)
        assert x.max() > finer.maximum + finer.step / 2 or x.min() < finer.minimum - finer.step / 2


@given(st.integers(-140, 120), WORDS, st.sampled_from([-1, 1]))
def test_powers_of_two_and_their_neighbours(exponent, word_length, sign):
    """Where a logarithm in floating point would round to the wrong side."""
    for base in (1.0, 1 + 2**-23, 2 - 2**-23):
        value = sign * base * 2.0**exponent
        precision = block_precision(value, value, word_length)
        assert precision == Precision(word_length, muppet.block_scale([value], word_length))


@pytest.mark.parametrize("word_length", [8, 12, 14, 16])
def test_the_ends_of_the_word_and_half_a_step_beyond_are_held(word_length):
    top, bottom = 2.0 ** (word_length - 1) - 1, -(2.0 ** (word_length - 1))
    assert block_precision(bottom - 0.5, top + 0.5, word_length).fraction_length == 0
    assert block_precision(0.0, top + 0.5 + 2**-7, word_length).fraction_length == -1
    assert block_precision(bottom - 0.5 - 2**-7, 0.0, word_length).fraction_length == -1
    assert block_precision(bottom / 2, 0.0, word_length).fraction_length == 1


@pytest.mark.parametrize(("minimum", "maximum"), [(0.0, 0.0), (-0.0, 0.0), (math.inf, -math.inf)])
def test_all_zero_and_empty_tensors_get_the_format_of_values_below_one(minimum, maximum):
    assert block_precision(minimum, maximum, 8) == Precision(8, 7)


@pytest.mark.parametrize(
    ("minimum", "maximum"),
    [(-math.inf, 0.0), (0.0, math.inf), (-1.0, math.inf), (-math.inf, math.inf), (math.nan, math.nan)],
)
def test_an_extreme_that_is_not_finite_counts_as_the_largest_number(minimum, maximum):
    assert block_precision(minimum, maximum, 8) in (
        block_precision(-LARGEST, 0.0, 8),
        block_precision(0.0, LARGEST, 8),
    )
    assert torch.finfo(torch.float32).max == LARGEST


def test_the_fraction_length_stays_within_its_limits():
    assert block_precision(0.0, 2.0**-149, 8).fraction_length == HIGHEST_FRACTION
    assert block_precision(-LARGEST, LARGEST, 2).fraction_length == LOWEST_FRACTION


def test_an_extreme_on_the_other_side_of_zero_bounds_nothing():
    assert block_precision(0.25, 1.0, 8) == block_precision(-0.0, 1.0, 8) == Precision(8, 6)
    assert block_precision(-1.0, -0.25, 8) == block_precision(-1.0, 0.0, 8) == Precision(8, 7)


def test_a_block_format_knows_its_word_length():
    assert BlockFloat(12) == BlockFloat(12) != BlockFloat(14)
    assert BlockFloat(8).precision(-0.5, 0.25) == block_precision(-0.5, 0.25, 8)
    with pytest.raises(ValueError, match="word_length must lie between 2 and 32 bits, got 33"):
        BlockFloat(33)
    with pytest.raises(TypeError, match=r"word_length must be an integer, got 8\.0"):
        BlockFloat(8.0)
