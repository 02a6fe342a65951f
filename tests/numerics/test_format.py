"""A tensor's format: words, values and quantize agree with each other and with what training and evaluation do."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import adapt
from adapt.learned import quantize as quantize_learned
from adapt.numerics import Format, Precision, pack, unpack

precisions = st.builds(Precision, st.integers(2, 32), st.integers(-126, 126))
floats = st.floats(width=32, allow_nan=False)


@given(precisions, st.lists(floats, min_size=1, max_size=20))
def test_fixed_point_is_what_adapt_quantize_returns(precision, values):
    x = torch.tensor(values)
    form = Format.of(precision)
    assert torch.equal(form.quantize(x), adapt.quantize(x, precision))
    words = form.integers(x)
    assert words.dtype == torch.int32
    assert torch.equal(form.values(words), form.quantize(x))


@given(precisions)
def test_fixed_point_has_the_numbers_of_its_precision(precision):
    form = Format.of(precision)
    assert (form.word_length, form.fraction_length) == (precision.word_length, precision.fraction_length)
    assert (form.step, form.minimum, form.maximum) == (precision.step, precision.minimum, precision.maximum)
    assert form.signed
    assert form.axis is None
    assert form.step.shape == form.minimum.shape == ()


def learned(step, maximum, bits, signed):
    """A format as learned widths make it: d and q₊, and the widest word that fits."""
    ratio = np.minimum(np.float32(maximum) / np.float32(step), 2.0 ** (bits - signed) - 1)
    high = int(np.rint(np.float32(ratio)))
    return Format(
        np.array(bits), np.array(np.float32(step)), np.array(signed), np.array(-high * signed), np.array(high)
    )


@given(
    st.floats(2**-12, 1, width=32),
    st.floats(1, 200, width=32),
    st.booleans(),
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20),
)
def test_learned_steps_are_rounded_as_the_quantiser_rounds(step, ratio, signed, values):
    maximum = float(np.float32(step) * np.float32(ratio))
    bits = int(adapt.learned.word_length(torch.tensor(step), torch.tensor(maximum), signed))
    # Where q₊/d lies on a tie, the formula may end a word earlier than the kernels, which multiply by 1/d.
    assume(abs(maximum / step % 1 - 0.5) > 1e-4)
    form = learned(step, maximum, bits, signed)
    x = torch.tensor(values)
    expected = quantize_learned(x, torch.tensor(step), torch.tensor(maximum), signed=signed)
    assert torch.equal(form.quantize(x), expected)
    assert torch.equal(form.values(form.integers(x)), expected)


@given(st.floats(2**-8, 127, width=32), st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20))
def test_one_signed_bit_is_the_word_minus_one_or_one(maximum, values):
    form = Format(np.array(1), np.array(maximum), np.array(True), np.array(-1), np.array(1))
    x = torch.tensor(values)
    expected = quantize_learned(x, torch.tensor(3 * maximum), torch.tensor(maximum), signed=True, floor=1)
    assert torch.equal(form.quantize(x), expected)
    assert set(form.integers(x).tolist()) <= {-1, 1}
    assert torch.equal(form.values(form.integers(x)), expected)


def test_channels_lie_along_their_axis():
    form = Format(
        np.array([2, 4, 8]),
        np.array([1.0, 0.5, 0.25]),
        np.ones(3, bool),
        np.array([-2, -8, -128]),
        np.array([1, 7, 127]),
        axis=1,
    )
    x = torch.full((2, 3, 2), 100.0)
    assert form.quantize(x)[:, :, 0].tolist() == [[1.0, 3.5, 31.75]] * 2
    assert form.integers(x.numpy()).dtype == np.int32
    assert form.fraction_length.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="x must have 3 channels along dimension 1"):
        form.quantize(torch.zeros(3, 2))


def test_channels_of_groups_are_numbered_group_by_group():
    bits = np.full(4, 8)
    form = Format(bits, np.array([1.0, 2.0, 4.0, 8.0]), bits > 0, -bits, bits, axis=1, groups=2)
    x = torch.full((6, 2, 1), 5.2)
    assert form.quantize(x)[:, :, 0].tolist() == [[5.0, 6.0]] * 3 + [[4.0, 8.0]] * 3


def test_nan_has_no_word_and_infinity_saturates():
    form = Format.of(Precision(4, 1))
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert form.quantize(x)[1:].tolist() == [3.5, -4.0]
    assert form.quantize(x)[0].isnan()
    assert form.integers(x[1:]).tolist() == [7, -8]
    with pytest.raises(ValueError, match="x holds NaN"):
        form.integers(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_rounded_as_adapt_quantize_rounds_them(dtype):
    x = torch.linspace(-3, 3, 101, dtype=dtype)
    result = Format.of(Precision(6, 4)).quantize(x)
    assert result.dtype == dtype
    assert torch.equal(result, adapt.quantize(x, Precision(6, 4)))


def test_numpy_in_numpy_out():
    x = np.linspace(-3, 3, 11, dtype=np.float32)
    form = Format.of(Precision(6, 4))
    np.testing.assert_array_equal(form.quantize(x), adapt.quantize(torch.from_numpy(x), Precision(6, 4)).numpy())
    np.testing.assert_array_equal(form.values(form.integers(x)), form.quantize(x))


@given(precisions)
def test_packed_formats_come_back_from_json(precision):
    form = Format.of(precision)
    assert unpack(json.loads(json.dumps(pack(form)))) == form


def test_packed_channels_come_back():
    form = Format(
        [2, 3], np.float32([0.1, 0.3]), np.array([True, False]), np.array([-1, 0]), np.array([1, 7]), axis=0, groups=1
    )
    assert unpack(json.loads(json.dumps(pack(form)))) == form
    assert form.fraction_length is None


@pytest.mark.parametrize(
    "change",
    [
        {"word_length": 40},
        {"word_length": [8, 8]},
        {"step": 0.0},
        {"step": float("nan")},
        {"step": 0.1},
        {"low": 1},
        {"low": -200},
        {"high": 128},
        {"axis": -1},
        {"axis": "0"},
        {"groups": 2.0},
        {"signed": "yes please"},
        {"unknown": 1},
    ],
)
def test_foreign_packed_formats_are_refused(change):
    packed = pack(Format.of(Precision(8, 4)))
    with pytest.raises(ValueError, match="format"):
        unpack(packed | change)
