"""A fraction length for every channel, of least squared error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import adapt
from adapt.numerics import LARGEST_SHIFT, ChannelPrecision, Precision, block_precision
from adapt.switching.allocation import HYSTERESIS, SAMPLE, WORDS, errors_by_word, squared_error
from adapt.switching.bounds import within
from adapt.switching.channel_ranges import (
    LEAST,
    ChannelRanges,
    best_channel_ranges,
    channel_format,
    errors_by_channel,
    sampled,
)
from adapt.switching.policy import Observation
from tests.references import adapt_equations as reference

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 6))
CHANNELS = SIZES.flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-100, 100, width=16), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
    )
)


@given(CHANNELS)
@example([[0.0, 0.0], [0.3, -0.01], [1e-6, 2e-6]])
@example([[0.0], [0.0]])
def test_every_channel_is_searched_like_a_layer(channels):
    weights = torch.tensor(channels)
    expected = reference.best_channel_ranges(weights.tolist(), (2, 3, 5, 9))
    for (lengths, errors), row in zip(best_channel_ranges(weights, (2, 3, 5, 9)), expected.values(), strict=True):
        assert lengths.tolist() == [length for length, _ in row]
        assert errors == pytest.approx([float(error) for _, error in row], rel=1e-5, abs=1e-30)


@given(CHANNELS, st.integers(2, 17), st.data())
def test_present_formats_stay_unless_others_are_clearly_better(channels, word_length, data):
    weights = torch.tensor(channels)
    lengths = [length for length, _ in reference.best_channel_ranges(weights.tolist(), [word_length])[word_length]]
    present = [length + data.draw(st.integers(-1, 2)) for length in lengths]
    current = channel_format(word_length, ChannelRanges(np.array(present), np.zeros(0)))
    expected = reference.errors_by_channel(weights.tolist(), (word_length, present))
    assert HYSTERESIS == 3 / 2
    for (form, error), (word, (lengths, literal)) in zip(
        errors_by_channel(weights, current), expected.items(), strict=True
    ):
        assert form == (ChannelPrecision(word, tuple(lengths)) if len(lengths) > 1 else Precision(word, *lengths))
        assert error == pytest.approx(float(literal), rel=1e-5, abs=1e-30)


@given(CHANNELS)
def test_the_error_is_that_of_the_format(channels):
    weights = torch.tensor(channels)
    for form, error in errors_by_channel(weights, None):
        assert error == pytest.approx(squared_error(weights, form), rel=1e-5, abs=1e-30)


@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=20), st.integers(2, 17), st.integers(-3, 12))
def test_a_layer_of_one_channel_is_a_layer_without_channels(weights, word_length, fraction_length):
    current = Precision(word_length, fraction_length)
    found, expected = (
        errors_by_channel(torch.tensor([weights]), current),
        errors_by_word(torch.tensor(weights), current),
    )
    assert [form for form, _ in found] == [form for form, _ in expected]
    assert [error for _, error in found] == pytest.approx([error for _, error in expected], rel=1e-5, abs=1e-30)


def test_channels_that_lie_too_far_apart_are_brought_together():
    weights = torch.tensor([[1e37, -1e37], [1e-36, 1e-37]])
    for ranges in best_channel_ranges(weights):
        assert np.ptp(ranges.fraction_lengths) == LARGEST_SHIFT
        channel_format(4, ranges)


def test_a_channel_of_zeros_is_ready_for_weights_like_those_of_the_others():
    weights = torch.tensor([[0.0, 0.0], [0.011, -0.012], [0.013, 0.009]])
    (form, _), *_ = errors_by_channel(weights, None)
    assert form.fraction_lengths[0] == block_precision(-0.012, 0.013, 2).fraction_length


def test_nothing_has_a_format_too():
    assert errors_by_channel(torch.zeros(1, 0), None)[0] == (Precision(2, 1), 0.0)


def test_every_channel_is_sampled():
    assert sampled(torch.zeros(64, 9)).shape == (64, 9)
    assert sampled(torch.zeros(16, SAMPLE)).shape[1] <= SAMPLE // 16
    assert sampled(torch.zeros(SAMPLE, 4 * LEAST)).shape[1] in range(LEAST // 2, LEAST + 1)
    assert sampled(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_longer_word_keeps_the_range_of_every_channel():
    assert within(ChannelPrecision(4, (3, 125)), (6, 8)) == ChannelPrecision(6, (5, 126))


def observed(weights, sums, **more):
    norms = np.array([float(s.norm()) for s in sums])
    seen = np.ones(len(sums), bool)
    return Observation(None, norms, norms, seen, seen, weights, sums, l1=np.zeros(len(sums)), **more)


def test_layers_share_bits_by_the_errors_of_their_channels():
    """Two layers of the same spread; only in one is it the channels that differ, so its words may be shorter."""
    torch.manual_seed(0)
    within_channels = torch.randn(8, 64) * torch.logspace(-2, 0, 64)
    between = torch.randn(8, 64) * torch.logspace(-2, 0, 8)[:, None]
    policy = adapt.AdaPT.compact(bits=4, channels=True, lookback=(1, 1))
    weights = [within_channels, between]
    state = policy.start(weights)
    assert all(isinstance(form, ChannelPrecision) and form.word_length == 4 for form in state.formats)
    after = policy.advance(state, observed(weights, [torch.ones(8, 64)] * 2)).formats
    assert sum(form.word_length for form in after) <= 8
    errors = [squared_error(w, form) for w, form in zip(weights, after, strict=True)]
    without = replace(policy, channels=False)
    plain = without.advance(without.start(weights), observed(weights, [torch.ones(8, 64)] * 2)).formats
    assert sum(errors) < 0.7 * sum(squared_error(w, form) for w, form in zip(weights, plain, strict=True))
    assert errors[1] < 0.6 * squared_error(between, plain[1])


def test_a_run_that_began_with_channels_goes_on_without_them():
    weights = [torch.randn(4, 16)]
    state = adapt.AdaPT.compact(channels=True).start(weights)
    for policy in (adapt.AdaPT.compact(lookback=(1, 1)), adapt.AdaPT.compact(bits=5, lookback=(1, 1))):
        assert type(policy.advance(state, observed(weights, [torch.ones(4, 16)])).formats[0]) is Precision


def test_bounds_beyond_the_words_that_are_considered():
    weights, policy = [torch.randn(4, 16)], adapt.AdaPT.compact(channels=True, lookback=(1, 1))
    state = policy.start(weights)
    form = policy.advance(state, observed(weights, [torch.ones(4, 16)], layer_bits=[(20, 24)])).formats[0]
    assert (type(form), form.word_length) == (ChannelPrecision, 20)
    assert len(WORDS) == 15


@pytest.mark.parametrize("wrong", [{"count": "entropy", "bits": 3}, {"push_up": "diversity"}])
def test_what_has_no_channels_is_refused(wrong):
    with pytest.raises(ValueError, match=r'channels=True needs push_up="loss" and count="words", got push_up='):
        adapt.AdaPT.compact(channels=True, **wrong)
    with pytest.raises(TypeError, match="channels must be True or False, got 1"):
        adapt.AdaPT.compact(channels=1)
