"""Sizes, the penalty of eq. 2, and the way back into the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.learned import Budget
from adapt.learned.budget import LONGEST, Load, penalty, penalty_slope, project
from adapt.perfmodel import network_size


def load(numel=(100, 200, 300), by="sum"):
    return Load("weight", np.array(numel, np.int64), by)


def test_size_is_the_performance_models():
    bits = np.array([3, 4, 5])
    assert load().size(bits) == pytest.approx(network_size([100, 200, 300], bits, 0, 0))
    assert load(by="max").size(bits) == pytest.approx(network_size(0, 0, [100, 200, 300], bits, activation_size="max"))


def test_targets_in_bits_and_in_kilobytes_agree():
    assert load().target(Budget(bits=4)) == pytest.approx(600 * 4 / 8000)
    assert load().target(Budget(kilobytes=0.3)) == 0.3
    assert load().average(load().target(Budget(bits=3.7))) == pytest.approx(3.7)
    assert load(by="max").target(Budget(bits=4)) == pytest.approx(300 * 4 / 8000)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "kilobytes=… or bits=…, one of them, got neither"),
        ({"bits": 4, "kilobytes": 3}, ValueError, "one of them"),
        ({"bits": "4"}, TypeError, "bits must be a number, got '4'"),
        ({"bits": True}, TypeError, "bits must be a number"),
        ({"kilobytes": 0}, ValueError, "kilobytes must be a finite number above 0"),
        ({"bits": float("inf")}, ValueError, "bits must be a finite number above 0"),
    ],
)
def test_budgets_that_are_none(options, kind, message):
    with pytest.raises(kind, match=message):
        Budget(**options)


def test_a_budget_below_the_fewest_bits_is_refused_by_name():
    with pytest.raises(ValueError, match=r"weight_budget of 1.9 bits on average cannot be met: 2 bits.*0\.15 kB"):
        load().check(Budget(bits=1.9), 2)
    with pytest.raises(ValueError, match=r"weight_budget of 0.1 kB cannot be met"):
        load().check(Budget(kilobytes=0.1), 2)
    load().check(Budget(bits=2), 2)
    load().check(Budget(bits=1), 1)


def test_penalty_is_equation_2_and_its_slope_the_derivative():
    small = load()
    bits, target = np.array([3, 4, 5]), 0.2
    excess = small.excess(bits, target)
    assert excess == pytest.approx(2600 / 8000 - 0.2)
    assert penalty(excess, 7.0) == pytest.approx(7 * (2600 / 8000 - 0.2) ** 2)
    for i, share in enumerate(small.shares(bits)):
        h = 1e-6
        moved = (small.numel[i] * h) / 8000
        assert penalty_slope(excess, 7.0) * share == pytest.approx(
            (penalty(excess + moved, 7.0) - penalty(excess - moved, 7.0)) / (2 * h), rel=1e-5
        )
    assert small.excess(bits, 1.0) == 0
    assert load(by="max").shares(bits).tolist() == [0, 0, 300 / 8000]


sizes = st.lists(st.integers(1, 500), min_size=1, max_size=30)


@given(sizes, st.integers(0, 2**31), st.floats(2.0, 9.0), st.sampled_from([1, 2]))
def test_projection_meets_the_budget_and_leaves_no_room_for_a_bit(numel, seed, average, floor):
    generator = np.random.default_rng(seed)
    here = load(numel)
    bits = generator.integers(floor, 12, len(numel))
    target = here.target(Budget(bits=average))
    found = project(here, bits, generator.random(len(numel)), target, floor=floor)
    assert here.size(found) <= target * (1 + 1e-9)
    assert (found >= floor).all()
    room = target * 8000 - (here.numel * found).sum()
    assert not ((here.numel < room - 1e-6) & (found < LONGEST)).any()


def test_projection_takes_from_those_that_lose_least_for_what_they_save():
    here = load((100, 100, 100))
    found = project(here, np.array([6, 6, 6]), np.array([100.0, 1.0, 10.0]), here.target(Budget(bits=5)), floor=2)
    # A bit less costs four times the noise: 1 → 4 → 16 is dearer than 10.
    assert found.tolist() == [6, 4, 5]


def test_projection_gives_room_to_those_that_gain_most():
    here = load((100, 100))
    found = project(here, np.array([3, 3]), np.array([100.0, 1.0]), here.target(Budget(bits=4)), floor=2)
    assert found.tolist() == [5, 3]


def test_projection_of_a_maximum_cuts_what_is_above():
    here = load((100, 200, 400), by="max")
    found = project(here, np.array([9, 7, 5]), np.ones(3), here.target(Budget(bits=3)), floor=2)
    assert found.tolist() == [9, 6, 3]


def test_projection_cannot_go_below_the_floor():
    with pytest.raises(ValueError, match="less than 2 bits"):
        project(load(), np.array([3, 3, 3]), np.ones(3), 0.01, floor=2)
    with pytest.raises(ValueError, match="less than 2 bits"):
        project(load(by="max"), np.array([3, 3, 3]), np.ones(3), 0.01, floor=2)
