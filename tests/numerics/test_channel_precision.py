"""One word length, and a fraction length for every channel."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.numerics import BlockFloat, ChannelPrecision, Format, Precision, pack_formats, unpack_formats

LENGTHS = st.integers(-60, 60)
FORMATS = st.builds(ChannelPrecision, st.integers(2, 32), st.lists(LENGTHS, min_size=1, max_size=6).map(tuple))


@given(FORMATS, st.integers(0, 3))
def test_plain_data_and_formats_give_it_back(form, axis):
    others = [None, BlockFloat(4), Precision(8, 4)]
    assert unpack_formats(json.loads(json.dumps(pack_formats([form, *others])))) == (form, *others)
    assert Format.of(form, axis).precision == form
    assert Format.of(form, axis).axis == axis
    assert form.fraction_length == form.widest.fraction_length == min(form.fraction_lengths)


@given(st.integers(2, 8), st.lists(st.integers(-3, 6), min_size=2, max_size=4))
def test_every_channel_has_the_values_of_its_own_format(word_length, lengths):
    form = Format.of(ChannelPrecision(word_length, tuple(lengths)), axis=1)
    x = torch.linspace(-9, 9, 37)[:, None].repeat(1, len(lengths))
    for channel, length in enumerate(lengths):
        expected = adapt.quantize(x[:, channel], Precision(word_length, length))
        assert torch.equal(form.quantize(x)[:, channel], expected)


def test_a_list_of_numpy_integers_becomes_a_tuple_of_ints():
    form = ChannelPrecision(np.int64(4), list(np.array([1, 2])))
    assert form == ChannelPrecision(4, (1, 2))
    assert [*map(type, form.fraction_lengths), type(form.word_length)] == [int] * 3
    assert str(form) == "⟨4, 1 to 2⟩ in 2 channels"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, (1, 2)), ValueError, "word_length must lie between 2 and 32 bits, got 1"),
        ((4, (1, 2.5)), TypeError, "fraction_length must be an integer, got 2.5"),
        ((4, (1, True)), TypeError, "fraction_length must be an integer, got True"),
        ((4, (1, 127)), ValueError, "fraction_length must lie between -126 and 126 bits, got 127"),
        ((4, (-64, 63)), ValueError, "fraction_lengths must be at most 126 bits apart, got -64 to 63"),
        ((4, ()), TypeError, r"fraction_lengths must be an integer for every output channel, got \(\)"),
        ((4, 3), TypeError, "fraction_lengths must be an integer for every output channel, got 3"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ChannelPrecision(*arguments)


@pytest.mark.parametrize("packed", [[4, []], [4, [1.5]], ["block", [4]], [4, [True]], [4, "12"]])
def test_what_packing_never_writes_is_refused(packed):
    with pytest.raises((ValueError, TypeError), match=r"format should be packed|fraction_lengths must"):
        unpack_formats([packed])
