"""Widths that are given win over the bounds of steps and ranges, and a common move changes none."""

import numpy as np
import pytest
import torch

from adapt.learned.budget import LONGEST
from adapt.learned.format_table import RANGES, STEPS, FormatTable


def formats(count, *, weights, floor=2, signed=True):
    """Tensors of one format each: weights, then activations."""
    return FormatTable(
        [str(i) for i in range(count)],
        [1] * count,
        np.full(count, 10, np.int64),
        np.full(count, signed),
        weights=weights,
        floor=floor,
        device=torch.device("cpu"),
    )


def check_bounds(found):
    """q₊ and d are within their bounds; where one signed bit is left, d is no step."""
    sign = (2 * found.maximum < found.step) & found.signed & (found.floor == 1)
    for part, kind in ((slice(0, found.weights), "weight"), (slice(found.weights, None), "activation")):
        low, high = STEPS[kind]
        assert (found.step[part] >= low).all()
        assert ((found.step[part] <= high) | sign[part]).all()
    assert ((found.maximum >= RANGES[0]) & (found.maximum <= RANGES[1])).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("floor", [1, 2])
def test_a_width_that_is_given_is_the_width(signed, floor):
    ranges = [0.0, 1e-3, 0.02, 0.3, 1.0, 1.7, 3.0, 40.0, 500.0]
    for bits in range(floor, LONGEST + 1):
        found = formats(2 * len(ranges), weights=len(ranges), floor=floor, signed=signed)
        wanted = np.full(2 * len(ranges), bits)
        found.set_widths(wanted, wanted > 0, torch.tensor(ranges * 2))
        assert found.bits.tolist() == wanted.tolist()
        check_bounds(found)


def test_a_width_leaves_a_range_that_allows_it():
    found = formats(3, weights=2)
    found.set_widths(np.array([4, 2, 4]), np.ones(3, bool), torch.tensor([0.7, 2.5, 9.0]))
    # Two bits end at one step, which is 1 at most.
    assert found.maximum.tolist() == pytest.approx([0.7, 1.0, 9.0])
    assert found.step.tolist() == pytest.approx([0.1, 1.0, 9 / 7])


def test_formats_that_are_not_chosen_stay():
    found = formats(2, weights=2)
    found.set(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.9]))
    found.set_widths(np.array([9, 3]), np.array([False, True]), torch.tensor([5.0, 0.6]))
    assert found.maximum.tolist() == pytest.approx([0.5, 0.6])
    assert found.step.tolist() == pytest.approx([0.1, 0.2])


def test_one_signed_bit_holds_ranges_beyond_the_bound_of_steps():
    found = formats(2, weights=1, floor=1)
    found.set_widths(np.array([1, 1]), np.ones(2, bool), torch.tensor([3.0, 20.0]))
    assert found.bits.tolist() == [1, 1]
    assert found.maximum.tolist() == [3.0, 20.0]
    # And so after a resume.
    again = formats(2, weights=1, floor=1)
    again.load_state_dict(found.state_dict())
    assert again.bits.tolist() == [1, 1]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("floor", [1, 2])
def test_a_common_move_changes_no_width(signed, floor):
    generator = torch.Generator().manual_seed(floor)
    count = 400
    found = formats(count, weights=200, floor=floor, signed=signed)
    maximum = torch.exp2(15 * torch.rand(count, generator=generator) - 8)
    found.set(maximum / torch.exp2(8 * torch.rand(count, generator=generator) - 2), maximum)
    bits, before = found.bits.copy(), found.step.clone()
    for _ in range(30):
        found.shift(4 * torch.randn(count, generator=generator))
        assert np.array_equal(found.bits, bits)
        check_bounds(found)
    assert not torch.equal(found.step, before)


def test_rounding_carries_no_width_over_the_end_of_its_word():
    generator = torch.Generator().manual_seed(0)
    count = 2000
    found = formats(count, weights=count)
    # What still counts as 3·d, within a float32's last digits.
    edge = (3 + 1) * 2**1e-4 - 1
    found.set(torch.full((count,), 0.1), 0.1 * (edge + 1e-6 * torch.randn(count, generator=generator)))
    bits = found.bits.copy()
    assert set(bits) == {3, 4}
    for _ in range(20):
        found.shift(torch.randn(count, generator=generator) / 10)
        assert np.array_equal(found.bits, bits)
