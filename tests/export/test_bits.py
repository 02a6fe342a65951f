"""Words as bits, against a literal twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.export.bits import pack_words, packed_size, unpack_words
from adapt.numerics import Precision
from adapt.numerics.format import Format


def literal(words, width, signed):
    """The bits of one word after the other, lowest first; words above 8 bits in planes."""
    if width > 8:
        unsigned = [word % 2**width for word in words]
        low, high = [word % 256 for word in unsigned], [word // 256 for word in unsigned]
        return literal(low, 8, False) + literal(high, width - 8, False)
    codes = [(word + 1) // 2 if signed and width == 1 else word % 2**width for word in words]
    bits = [code >> i & 1 for code in codes for i in range(width)]
    bits += [0] * (-len(bits) % 8)
    return bytes(sum(bit << i for i, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8))


def format_of(width, signed, **place):
    """The format with every word of a width; an array of widths has channels."""
    bits = np.asarray(width) - np.asarray(signed)
    return Format(
        word_length=width,
        step=np.ones(np.shape(width)),
        signed=signed,
        low=np.where(signed, np.where(bits == 0, -1, -(2**bits)), 0),
        high=np.where(bits == 0, 1, 2**bits - 1),
        **place,
    )


def words_of(form, shape, seed=0):
    """Random words of a format for a whole tensor."""
    rng = np.random.default_rng(seed)
    if form.signed and form.word_length == 1:
        return rng.choice([-1, 1], shape).astype(np.int32)
    return rng.integers(form.low, form.high, shape, np.int64, endpoint=True).astype(np.int32)


@given(st.integers(1, 31), st.booleans(), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 99))
def test_words_are_packed_as_the_twin_packs_them(width, signed, shape, seed):
    form = format_of(width, signed)
    words = words_of(form, shape, seed)
    packed = pack_words(words, form)
    assert packed == literal(words.reshape(-1).tolist(), width, signed)
    assert len(packed) == packed_size(shape, form)
    assert np.array_equal(unpack_words(packed, shape, form), words)


def test_long_tensors_are_one_stream():
    form = Format.of(Precision(5, 0))
    words = words_of(form, (2**17 + 3,))
    assert pack_words(words, form) == literal(words.tolist(), 5, True)
    assert np.array_equal(unpack_words(pack_words(words, form), words.shape, form), words)


@pytest.mark.parametrize(
    ("shape", "axis", "groups"),
    [((6, 5), 0, 1), ((5, 6), 1, 1), ((4, 3, 2), 1, 2), ((6, 1, 2), 1, 6), ((3, 6, 2), 1, 1)],
)
def test_every_channel_takes_its_own_width(shape, axis, groups):
    rng = np.random.default_rng(1)
    channels = shape[axis] * groups
    widths, signed = rng.integers(1, 12, channels), rng.random(channels) < 0.7
    form = format_of(widths, signed, axis=axis, groups=groups)
    split = np.empty(shape, np.int32).reshape(groups, -1, *shape[1:]) if groups > 1 else np.empty(shape, np.int32)
    for channel in range(channels):
        where = [slice(None)] * split.ndim
        where[axis + (groups > 1)] = channel % shape[axis]
        if groups > 1:
            where[0] = channel // shape[axis]
        split[tuple(where)] = words_of(format_of(widths[channel], signed[channel]), split[tuple(where)].shape, channel)
    words = split.reshape(shape)
    packed = pack_words(words, form)
    elements = words.size // channels
    assert 0 <= len(packed) * 8 - widths.sum() * elements < 16 * 2 * 11
    assert np.array_equal(unpack_words(packed, shape, form), words)


def test_a_stream_of_another_length_is_refused():
    form = Format.of(Precision(5, 0))
    with pytest.raises(ValueError, match="take 5 bytes, got 6"):
        unpack_words(bytes(6), (8,), form)
    with pytest.raises(ValueError, match="does not have the channels"):
        packed_size((3, 4), format_of(np.full(4, 3), np.full(4, True), axis=0))
