import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt import penalties

COEFFICIENTS = st.floats(0, 10)
WEIGHTS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6)
WORDS = st.integers(2, 32)
SHARES = st.floats(0, 1)


@given(st.lists(WEIGHTS, min_size=1, max_size=4), COEFFICIENTS, COEFFICIENTS)
def test_elastic_net_is_the_sum_over_all_weights(layers, l1, l2):
    found = penalties.elastic_net(
        [sum(abs(w) for w in layer) for layer in layers], [sum(w * w for w in layer) for layer in layers], l1, l2
    )
    expected = sum(l1 * abs(w) + l2 / 2 * w * w for layer in layers for w in layer)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_elastic_net_with_a_coefficient_for_each_layer():
    assert penalties.elastic_net([1.0, 10.0], [4.0, 9.0], np.array([0.5, 0.25]), 2.0) == 0.5 + 2.5 + 13.0


@given(st.lists(st.tuples(WORDS, SHARES), min_size=1, max_size=6))
def test_word_length_times_sparsity_is_a_mean_over_layers(layers):
    words, shares = zip(*layers, strict=True)
    expected = sum(w / 32 * s for w, s in layers) / len(layers)
    found = penalties.word_length_sparsity(words, shares)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert 0 <= found <= 1


def test_word_length_times_sparsity_at_its_ends():
    assert penalties.word_length_sparsity([32, 32], [1.0, 1.0]) == 1
    assert penalties.word_length_sparsity([32, 2], [0.0, 0.0]) == 0
    assert penalties.word_length_sparsity(np.array([8]), np.array([0.5])) == 0.125


@given(COEFFICIENTS, st.lists(WORDS, min_size=1, max_size=6))
def test_l1_by_word_length_pulls_at_long_words(l1, words):
    found = penalties.l1_by_word_length(l1, words)
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx([l1 * word / 32 for word in words])
    assert math.isclose(penalties.l1_by_word_length(l1, [32])[0], l1)
