import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt.numerics import Precision
from adapt.switching import STRATEGIES, push_up, push_up_by_diversity, suggest
from tests.references import adapt_equations as reference

DIVERSITIES = st.one_of(
    st.floats(), st.floats(1, 20), st.sampled_from([1.0, math.e, math.nextafter(math.e, 3), math.e**2, math.inf])
)
PRECISIONS = st.builds(Precision, st.integers(2, 32), st.integers(-126, 126))
BUFFERS = st.integers(0, 32)


@given(DIVERSITIES, st.integers(-126, 126), st.sampled_from(STRATEGIES))
def test_suggestion_equals_the_literal_equation(delta, fraction_length, strategy):
    answer = suggest(delta, fraction_length, strategy)
    assert type(answer) is int
    assert answer == reference.suggest(delta, fraction_length, strategy)


@given(DIVERSITIES, st.integers(-126, 126))
def test_strategies_are_ordered_and_suggest_a_bit_at_least(delta, fraction_length):
    lowest, middle, highest = (suggest(delta, fraction_length, strategy) for strategy in ("min", "mean", "max"))
    assert 1 <= lowest <= middle <= highest


@pytest.mark.parametrize(
    ("delta", "fraction_length", "expected"),
    [
        (1.0, 4, (1, 1, 1)),  # log Δs = 0
        (math.e, 4, (1, 14, 27)),  # x = 0: s1 = 1; s2 = 31 − 4
        (math.inf, 4, (1, 14, 27)),  # counts as log Δs = 1
        (math.exp(0.5), 4, (1, 2, 3)),  # s2 = 7 − 4
        (math.exp(0.5), 30, (1, 1, 1)),  # s2 would be negative
        (math.exp(1.25), 4, (4, 16, 28)),  # s1 = 1/0.25; s2 = 32 − 4
        (math.exp(1 + 1e-9), 4, (28, 30, 32)),  # s1 = 32
        (math.exp(1.25), -10, (4, 23, 42)),
    ],
)
def test_suggestions_by_hand(delta, fraction_length, expected):
    assert tuple(suggest(delta, fraction_length, strategy) for strategy in STRATEGIES) == expected


@given(PRECISIONS, DIVERSITIES, st.sampled_from(STRATEGIES), BUFFERS)
def test_format_equals_the_literal_rule(lowest, delta, strategy, buffer_bits):
    answer = push_up(lowest, delta, strategy, buffer_bits)
    expected = reference.push_up(lowest.word_length, lowest.fraction_length, delta, strategy, buffer_bits)
    assert (answer.word_length, answer.fraction_length) == expected


@given(PRECISIONS, DIVERSITIES, st.sampled_from(STRATEGIES), BUFFERS)
def test_format_keeps_its_promises(lowest, delta, strategy, buffer_bits):
    answer = push_up(lowest, delta, strategy, buffer_bits)
    assert lowest.word_length <= answer.word_length <= 32
    assert answer.fraction_length <= 32 - buffer_bits
    assert answer.integer_length >= buffer_bits
    if lowest.fraction_length < 32 - buffer_bits:
        assert answer.fraction_length > lowest.fraction_length


@pytest.mark.parametrize(
    ("lowest", "delta", "strategy", "buffer_bits", "expected"),
    [
        (Precision(6, 4), 1.0, "min", 4, Precision(9, 5)),
        (Precision(6, 4), math.e, "max", 4, Precision(32, 28)),
        (Precision(6, 4), math.e, "mean", 8, Precision(26, 18)),
        (Precision(6, 7), 1.0, "min", 4, Precision(12, 8)),
        (Precision(20, 4), 1.0, "min", 4, Precision(20, 5)),
    ],
)
def test_formats_by_hand(lowest, delta, strategy, buffer_bits, expected):
    assert push_up(lowest, delta, strategy, buffer_bits) == expected


@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.sampled_from([2.0**-12, 0.01, 0.3, 4.0]),
    st.builds(Precision, st.integers(2, 12), st.integers(-4, 14)),
    st.builds(Precision, st.integers(2, 16), st.integers(-4, 16)),
    st.integers(0, 8),
)
def test_algorithm_4_equals_its_literal_form(seed, window, scale, lowest, current, buffer_bits):
    gradients = scale * torch.randn(window, 3, 2, generator=torch.Generator().manual_seed(seed))
    answer = push_up_by_diversity(lowest, current, list(gradients), buffer_bits=buffer_bits)
    expected = reference.push_up_by_diversity(
        (lowest.word_length, lowest.fraction_length),
        (current.word_length, current.fraction_length),
        gradients.numpy(),
        buffer_bits,
    )
    assert (answer.word_length, answer.fraction_length) == expected


def test_algorithm_4_rises_until_the_gradients_are_as_diverse_as_now():
    # ⟨5, 3⟩ sees (2, 0) and (0, 2) eighths: Δs = √2. A step of ½ rounds both to zero, a step of ¼ sees them again.
    gradients = [torch.tensor([0.25, 0.0]), torch.tensor([0.0, 0.25])]
    assert push_up_by_diversity(Precision(3, 1), Precision(5, 3), gradients, buffer_bits=2) == Precision(4, 2)


def test_algorithm_4_stops_at_once_where_nothing_is_to_be_gained():
    gradients = [torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])]
    lowest = Precision(4, 2)
    assert push_up_by_diversity(lowest, Precision(16, 8), gradients, buffer_bits=2) == lowest
    assert push_up_by_diversity(lowest, Precision(16, 8), [torch.zeros(2)], buffer_bits=2) == lowest
    assert push_up_by_diversity(lowest, Precision(16, 8), [], buffer_bits=2) == lowest


def test_algorithm_4_ends_at_32_bits():
    # 2^−40 is beyond every step that 32 bits reach from ⟨4, 2⟩, and within the current format's.
    gradients = [torch.full((3,), 2.0**-40)]
    assert push_up_by_diversity(Precision(4, 2), Precision(8, 42), gradients, buffer_bits=0) == Precision(32, 30)
    assert push_up_by_diversity(Precision(4, 124), Precision(8, 126), [torch.full((3,), 2.0**-126)], buffer_bits=0) == (
        Precision(32, 32)
    )


def test_refuses_nonsense():
    lowest = Precision(6, 4)
    with pytest.raises(ValueError, match='strategy must be "min", "mean" or "max", got \'median\''):
        suggest(2.0, 4, "median")
    with pytest.raises(ValueError, match='strategy must be "min"'):
        push_up(lowest, 2.0, "MIN", 4)
    for buffer_bits in (-1, 33):
        with pytest.raises(ValueError, match=f"buffer_bits must lie between 0 and 32, got {buffer_bits}"):
            push_up(lowest, 2.0, "min", buffer_bits)
    with pytest.raises(TypeError, match=r"lowest must be an adapt\.Precision, got \(6, 4\)"):
        push_up((6, 4), 2.0, "min", 4)
    with pytest.raises(TypeError, match=r"current must be an adapt\.Precision, got 8"):
        push_up_by_diversity(lowest, 8, [], buffer_bits=4)
    with pytest.raises(TypeError, match=r"buffer_bits must be a whole number of bits, got 4\.0"):
        push_up_by_diversity(lowest, lowest, [], buffer_bits=4.0)


def test_numpy_numbers_are_numbers():
    assert push_up(Precision(6, 4), np.float64(math.e), "max", np.int64(4)) == Precision(32, 28)
