"""How far ranges lie below the running maximum: the errors and the choice, against their literal twins."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt import Precision
from adapt.activations.clipping import HYSTERESIS, OCTAVES, chosen_shifts, clipping_errors
from adapt.rounding import grid
from tests.references import activations as reference


def rows(*precisions):
    return torch.stack([torch.tensor(grid(precision)) for precision in precisions])


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9),
    word=st.integers(2, 16),
    fraction=st.integers(-8, 20),
)
def test_errors_are_those_of_rounding_to_nearest(values, word, fraction):
    (errors,) = clipping_errors(torch.tensor([values]), rows(Precision(word, fraction)))
    expected = reference.clipping_errors(values, word, fraction, OCTAVES)
    assert errors.tolist() == pytest.approx([float(error) for error in expected], rel=1e-5)


def test_a_site_without_a_format_has_no_errors():
    samples = torch.tensor([[1.0, 100.0], [0.3, -0.7]])
    errors = clipping_errors(samples, rows(None, Precision(3, 1)))
    assert errors[0].tolist() == [0] * (OCTAVES + 1)
    assert (errors[1] > 0).all()


def test_no_format_is_finer_than_the_finest():
    samples, finest = torch.tensor([[1.3 * 2.0**-125]]), Precision(4, 125)
    errors = clipping_errors(samples, rows(finest))[0].tolist()
    assert errors[1] < errors[0]
    assert errors[2:] == [errors[1]] * (OCTAVES - 1)


errors_of_a_site = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.4, 1.6, 9.0]), min_size=7, max_size=7)


@given(errors=st.lists(errors_of_a_site, min_size=1, max_size=4), shift=st.integers(0, OCTAVES))
def test_another_shift_must_be_clearly_better(errors, shift):
    chosen = chosen_shifts(torch.tensor(errors), torch.full((len(errors),), shift, dtype=torch.int32))
    assert chosen.dtype == torch.int32
    assert chosen.tolist() == [reference.chosen_shift(site, shift, HYSTERESIS) for site in errors]
