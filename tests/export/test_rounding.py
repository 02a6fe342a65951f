"""Explicit rounding gives the bits of the format's own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapt.export.rounding import Rounding, add_rounding
from adapt.numerics import Format, Precision

FORMATS = st.one_of(
    st.builds(Precision, st.integers(2, 32), st.integers(-100, 100)).map(Format.of),
    st.tuples(st.integers(1, 12), st.floats(2.0**-20, 2.0**10, width=32), st.booleans()).map(
        lambda drawn: learned(*drawn)
    ),
)


def learned(bits, step, signed):
    """A format whose step is no power of two, as gradients learn it."""
    top = 2 ** (bits - signed) - 1 if bits > signed else 1
    return Format(bits, step, signed, -top if signed else 0, top)


@given(
    FORMATS, st.lists(st.floats(width=32), max_size=20), st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
)
def test_it_rounds_as_the_format_does(form, numbers, dtype):
    step = float(form.step)
    ties = torch.tensor([k / 2 * step for k in range(-9, 10)])
    ends = torch.tensor([float(end) for end in (form.minimum, form.maximum)])
    x = torch.cat([torch.tensor(numbers), ties, ends, ends * 1.5, torch.tensor([torch.nan, torch.inf, -torch.inf])])
    x = x.to(dtype)
    found, expected = Rounding(form)(x), form.quantize(x)
    assert found.dtype == dtype
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


def test_other_things_pass_unchanged():
    rounding = Rounding(Format.of(Precision(4, 2)))
    for thing in (torch.tensor([1.23], dtype=torch.float64), torch.tensor([3]), None, "text"):
        assert rounding(thing) is thing


def test_formats_with_channels_are_refused():
    with pytest.raises(NotImplementedError, match="by channel"):
        Rounding(Format(np.full(2, 4), np.ones(2), np.full(2, True), np.full(2, -8), np.full(2, 7), axis=0))


def test_the_input_is_the_first_argument_or_the_one_of_this_name():
    layer = nn.Linear(2, 2)
    rounding = Rounding(Format.of(Precision(2, 0)))
    x = torch.tensor([[0.7, -3.0]])
    expected = layer(rounding(x))
    add_rounding(layer, input=rounding)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(input=x), expected)
    assert isinstance(layer, nn.Linear)
    assert "RoundedLinear" in repr(layer)


def test_a_layer_with_a_forward_of_its_own_is_refused():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    with pytest.raises(NotImplementedError, match="forward of a Linear was replaced"):
        add_rounding(layer, input=nn.Identity())
