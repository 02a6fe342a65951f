"""Names of parameters, who follows whom, and the format that just holds some values; `test_attach.py` has refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapt import layering
from adapt.precision import HIGHEST_FRACTION, LOWEST_FRACTION, Precision

VALUES = st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=1, max_size=5)
POWERS = st.integers(-40, 40).map(lambda exponent: 2.0**exponent)


def holds(precision, largest):
    """Whether the format saturates `largest` by at most half a step."""
    return largest <= precision.maximum + precision.step / 2


@given(st.one_of(VALUES, POWERS.map(lambda p: [p]), POWERS.map(lambda p: [-p, p / 3])), st.integers(2, 32))
def test_fitting_is_the_finest_format_that_holds_the_values(values, word_length):
    values = torch.tensor(values)
    precision = layering.fitting(values, word_length)
    largest = values.abs().max().item()
    assert precision.word_length == word_length
    if largest == 0:
        assert precision.fraction_length == word_length - 1
        return
    formats = [Precision(word_length, fl) for fl in range(LOWEST_FRACTION, HIGHEST_FRACTION + 1)]
    assert precision == [form for form in formats if holds(form, largest)][-1]


@pytest.mark.parametrize(
    ("values", "word_length", "fraction_length"),
    [
        ([0.99], 8, 7),
        ([0.997], 8, 6),  # 127/128 is 0.992, and half a step more 0.996
        ([1.0], 8, 6),
        ([-1.0, 0.2], 8, 6),
        ([3.0], 3, 0),
        ([0.99], 3, 1),
        ([100.0], 4, -4),
        ([2.0**-10], 8, 16),
    ],
)
def test_fitting_by_hand(values, word_length, fraction_length):
    assert layering.fitting(torch.tensor(values), word_length) == Precision(word_length, fraction_length)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan], [math.inf, 1.0]])
def test_fitting_values_that_have_no_magnitude(values):
    assert layering.fitting(torch.tensor(values), 8) == Precision(8, 7)


@pytest.mark.parametrize("values", [[1e-45], [3e38], [-3.4e38]])
@pytest.mark.parametrize("word_length", [2, 8, 32])
def test_fitting_stays_within_the_formats_that_there_are(values, word_length):
    precision = layering.fitting(torch.tensor(values), word_length)
    assert LOWEST_FRACTION <= precision.fraction_length <= HIGHEST_FRACTION


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("0.weight", "0.weight"),
        ("_orig_mod.0.weight", "0.weight"),
        ("module.0.weight", "0.weight"),
        ("module._orig_mod.0.weight", "0.weight"),
        ("_orig_mod.module.0.weight", "0.weight"),
        ("block._orig_mod.weight", "block.weight"),
        ("body.module.weight", "body.module.weight"),
    ],
)
def test_plain_names(name, plain):
    assert layering.plain_name(name) == plain


def test_biases_and_norms_follow_the_layer_before_them():
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
    )
    model[4].bias.requires_grad_(False)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    layers = ["1.weight", "3.weight", "4.weight"]
    found = layering.followers(parameters, layers, optimizer)
    assert {name: layers[leader] for name, (_, leader) in found.items()} == {
        "0.weight": "1.weight",
        "0.bias": "1.weight",
        "1.bias": "1.weight",
        "2.weight": "1.weight",
        "2.bias": "1.weight",
    }
    assert all(parameter is parameters[name] for name, (parameter, _) in found.items())


def test_matrices_are_layers():
    for shape, answer in (((), False), ((3,), False), ((3, 3), True), ((3, 3, 1, 1), True)):
        assert layering.is_matrix("weight", torch.zeros(shape)) is answer
