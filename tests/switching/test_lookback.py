import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.switching import STRATEGIES, next_lookback, next_resolution, next_strategy
from tests.references import adapt_equations as reference

DIVERSITIES = st.one_of(st.floats(), st.floats(1, 20))
BOUNDS = st.tuples(st.integers(1, 200), st.integers(1, 200)).map(lambda pair: tuple(sorted(pair)))
SHARES = st.floats(0, 1)
LOSSES = st.floats(-100, 100)


@given(SHARES, DIVERSITIES, BOUNDS, SHARES)
def test_lookback_equals_the_literal_average_and_stays_within_its_bounds(place, delta, bounds, momentum):
    lookback = bounds[0] + place * (bounds[1] - bounds[0])
    answer = next_lookback(lookback, delta, bounds=bounds, momentum=momentum)
    assert type(answer) is float
    assert bounds[0] <= answer <= bounds[1]
    assert answer == pytest.approx(reference.next_lookback(lookback, delta, bounds, momentum), rel=1e-8)


@given(BOUNDS, st.floats(0.01, 1), st.booleans())
def test_lookback_reaches_the_end_it_is_drawn_to(bounds, momentum, up):
    lookback, goal = (bounds[0], bounds[1]) if up else (bounds[1], bounds[0])
    steps = 0
    while math.ceil(lookback) != goal:
        lookback = next_lookback(lookback, math.inf if up else 1e9, bounds=bounds, momentum=momentum)
        steps += 1
        assert steps <= 3000
    assert next_lookback(goal, math.inf if up else 1e9, bounds=bounds, momentum=momentum) == goal


@pytest.mark.parametrize(
    ("lookback", "delta", "momentum", "expected"),
    [
        (100.0, 1.0, 0.33, 100.0),
        (100.0, 2.0, 0.33, 0.33 * 50 + 0.67 * 100),
        (100.0, 3.0, 1.0, 34.0),  # ⌈100/3⌉
        (100.0, 50.0, 0.5, 62.5),  # clamped to 25
        (40.0, math.inf, 0.5, 70.0),
        (40.0, math.nan, 0.5, 70.0),
        (40.0, 2.0, 0.0, 40.0),
    ],
)
def test_lookback_by_hand(lookback, delta, momentum, expected):
    answer = next_lookback(lookback, delta, bounds=(25, 100), momentum=momentum)
    assert answer == pytest.approx(expected, rel=1e-12)


def test_lookback_falls_to_its_lower_bound_with_the_papers_momentum():
    lookback, steps = 100.0, 0
    while lookback != 25:
        lookback, steps = next_lookback(lookback, 10.0, bounds=(25, 100), momentum=0.33), steps + 1
    assert steps < 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": (100, 25)}, r"bounds must be \(lower, upper\) with 1 ≤ lower ≤ upper, got \(100, 25\)"),
        ({"bounds": (0, 25)}, r"bounds must be \(lower, upper\)"),
        ({"momentum": 1.5}, r"momentum must lie between 0 and 1, got 1\.5"),
        ({"momentum": -0.1}, "momentum must lie between 0 and 1"),
        ({"momentum": math.nan}, "momentum must lie between 0 and 1"),
        ({"lookback": 0.0}, "lookback must be a positive number of gradients"),
        ({"lookback": math.nan}, "lookback must be a positive number of gradients"),
    ],
)
def test_lookback_refuses_nonsense(arguments, message):
    valid = {"lookback": 50.0, "diversity": 2.0, "bounds": (25, 100), "momentum": 0.33}
    with pytest.raises(ValueError, match=message):
        next_lookback(**(valid | arguments))


@pytest.mark.parametrize("bounds", [(25, math.inf), (25.5, 100), (25,), (25, 50, 100), 100, "25"])
def test_lookback_refuses_what_is_no_pair_of_bounds(bounds):
    with pytest.raises(TypeError, match="bounds must be two whole numbers"):
        next_lookback(50.0, 2.0, bounds=bounds, momentum=0.33)


@given(st.integers(1, 300), st.floats(0.5, 300), BOUNDS, BOUNDS)
def test_resolution_equals_the_literal_equation_and_stays_within_its_bounds(
    resolution, lookback, resolution_bounds, lookback_bounds
):
    answer = next_resolution(resolution, lookback, resolution_bounds=resolution_bounds, lookback_bounds=lookback_bounds)
    assert type(answer) is int
    assert resolution_bounds[0] <= answer <= resolution_bounds[1]
    assert answer == reference.next_resolution(resolution, lookback, resolution_bounds, lookback_bounds)


@pytest.mark.parametrize(
    ("resolution", "lookback", "expected"),
    [
        (100, 100.0, 101),
        (100, 99.2, 101),
        (100, 99.0, 100),
        (100, 25.0, 99),
        (100, 25.1, 100),
        (150, 100.0, 150),
        (50, 25.0, 50),
        (10, 60.0, 50),
    ],
)
def test_resolution_by_hand(resolution, lookback, expected):
    answer = next_resolution(resolution, lookback, resolution_bounds=(50, 150), lookback_bounds=(25, 100))
    assert answer == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resolution_bounds": (150, 50)}, ValueError, r"resolution_bounds must be \(lower, upper\)"),
        ({"lookback_bounds": (0, 50)}, ValueError, r"lookback_bounds must be \(lower, upper\)"),
        ({"resolution": 0}, ValueError, "resolution must be at least 1 bin"),
        ({"resolution": 70.0}, TypeError, "resolution must be a whole number of bins"),
        ({"lookback": math.inf}, ValueError, "lookback must be a positive number of gradients"),
    ],
)
def test_resolution_refuses_nonsense(arguments, error, message):
    valid = {"resolution": 100, "lookback": 50.0, "resolution_bounds": (50, 150), "lookback_bounds": (25, 100)}
    with pytest.raises(error, match=message):
        next_resolution(**(valid | arguments))


@given(st.sampled_from(STRATEGIES), LOSSES, st.lists(st.integers(-100, 100).map(float), max_size=20))
def test_strategy_equals_the_literal_rule(strategy, loss, previous):
    assert next_strategy(strategy, loss, previous) == reference.next_strategy(strategy, loss, previous)


def test_strategy_rises_step_by_step_and_falls_at_once():
    strategy, seen = "min", []
    for loss in (1.0, 1.0, 2.0, 3.0, 0.5):
        strategy = next_strategy(strategy, loss, [1.0])
        seen.append(strategy)
    assert seen == ["mean", "max", "max", "max", "min"]


def test_strategy_compares_magnitudes():
    assert next_strategy("mean", -3.0, [1.0, 2.0]) == "max"
    assert next_strategy("mean", 0.5, [-1.0, -2.0]) == "min"
    assert next_strategy("mean", 5.0, ()) == "mean"
    assert next_strategy("mean", math.nan, [1.0]) == "min"


def test_strategy_refuses_nonsense():
    with pytest.raises(ValueError, match='strategy must be "min", "mean" or "max", got \'none\''):
        next_strategy("none", 1.0, [])
