"""The six gradient scalings, and their picture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt.figures import pixels
from adapt.learned.scaling import SCALINGS, draw, scale
from tests.references import learned as twin


@given(st.floats(-0.5, 0.5), st.sampled_from([-2.0, 0.5]), st.sampled_from(SCALINGS))
def test_factors_are_the_papers(u, g, scaling):
    found = scale(torch.tensor(u, dtype=torch.float64), torch.tensor(g, dtype=torch.float64), scaling, 0.2)
    assert float(found) == pytest.approx(1 + 0.2 * twin.shape(scaling, u, g))


def test_straight_through_is_one():
    assert scale(torch.linspace(-0.5, 0.5, 5), torch.tensor(1.0), "ste").tolist() == [1.0] * 5


def test_the_picture_shows_every_scaling_for_both_signs():
    figure = draw()
    for axes, sign in zip(figure.axes, (1.0, -1.0), strict=True):
        assert [line.get_label() for line in axes.lines[: len(SCALINGS)]] == list(SCALINGS)
        for line in axes.lines[: len(SCALINGS)]:
            u, factor = line.get_data()
            assert factor[-1] == pytest.approx(1 + 0.5 * twin.shape(line.get_label(), float(u[-1]), sign), rel=1e-5)
    assert pixels(figure).std() > 0


def test_refusals():
    with pytest.raises(ValueError, match='scaling must be "ste"'):
        scale(torch.zeros(1), torch.ones(1), "cubic")
    with pytest.raises(TypeError, match="delta must be a number"):
        scale(torch.zeros(1), torch.ones(1), "ste", "much")
    with pytest.raises(ValueError, match="delta must lie between"):
        draw(-1.0)
