"""Formats within bounds of their words, and a budget that is spent within them."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import adapt
from adapt.numerics import LONGEST_WORD, BlockFloat, Precision
from adapt.switching.bounds import ALL, within
from adapt.switching.compact import Windows, switched
from adapt.switching.policy import Observation

words = st.integers(2, 32)
formats = st.one_of(st.none(), st.builds(BlockFloat, words), st.builds(Precision, words, st.integers(-126, 126)))
bounds = st.tuples(words, words).map(lambda pair: (min(pair), max(pair)))


def word_length(form):
    return LONGEST_WORD if form is None else form.word_length


def observed(weights, sums, pairs):
    """A step in which all is well, of layers with these weights, sums of gradients and bounds."""
    ones, true = np.ones(len(weights)), np.ones(len(weights), bool)
    zero = np.zeros(len(weights))
    return Observation(1.0, ones, ones, true, true, weights, sums, l1=zero, layer_bits=pairs)


@given(formats, bounds)
def test_the_word_length_is_the_nearest_within_the_bounds(form, pair):
    low, high = pair
    assert word_length(within(form, pair)) == min(max(word_length(form), low), high)
    assert within(within(form, pair), pair) == within(form, pair)
    assert within(form, ALL) == form


@given(st.builds(Precision, words, st.integers(-126, 126)), bounds)
def test_a_longer_word_has_the_range_and_a_finer_step(form, pair):
    assume(form.word_length < pair[0])
    found = within(form, pair)
    assert found.minimum <= form.minimum
    assert found.step <= form.step
    assert found.integer_length == form.integer_length or found.fraction_length == 126


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    pairs=st.lists(bounds, min_size=5, max_size=5),
    bits=st.one_of(st.none(), st.floats(2, 16)),
    count=st.sampled_from(["words", "entropy"]),
    seed=st.integers(0, 1000),
)
def test_compact_shares_bits_out_within_the_bounds(sizes, pairs, bits, count, seed):
    pairs, count = pairs[: len(sizes)], "words" if bits is None else count
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(size, generator=generator) * 2.0 ** (seed % 9 - 4) for size in sizes]
    layers = len(sizes)
    sums = [0.01 * torch.randn(size, generator=generator) for size in sizes]
    windows = Windows(np.arange(layers), np.full(layers, 4), np.exp2(np.arange(layers)), (1.0,) * 4)
    found, costs = switched((Precision(8, 6),) * layers, windows, observed(weights, sums, pairs), bits, 0.001, count)
    lengths = [form.word_length for form in found]
    assert all(isinstance(form, Precision) for form in found)
    assert len(costs) == layers
    assert all(low <= length <= high for (low, high), length in zip(pairs, lengths, strict=True))
    if count == "words" and bits is not None:
        fewest = sum(low * size for (low, _), size in zip(pairs, sizes, strict=True))
        assert sum(np.multiply(lengths, sizes)) <= max(bits * sum(sizes), fewest) * (1 + 1e-9)


def test_bits_that_a_pinned_layer_leaves_go_to_the_others():
    weights = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    windows = Windows(np.arange(3), np.full(3, 4), np.ones(3), (1.0,))
    observation = observed(weights, weights, [(8, 8), ALL, ALL])
    found, _ = switched((Precision(8, 6),) * 3, windows, observation, 4.0, 0.001)
    assert [form.word_length for form in found] == [8, 2, 2]


def test_a_budget_below_the_fewest_bits_is_refused():
    policy = adapt.AdaPT.compact(bits=4)
    policy.check_bounds([(8, 8), (2, 32)], [100, 900])
    with pytest.raises(ValueError, match=r"layer_bits ask for at least 5 bits per weight on average, but bits=4 all"):
        policy.check_bounds([(8, 8), (2, 32)], [500, 500])
    adapt.AdaPT.compact().check_bounds([(8, 8)], [10])
