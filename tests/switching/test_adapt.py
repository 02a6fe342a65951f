"""The policy of the paper: what it starts with, when it looks, and algorithm 2 by hand. `tests/test_algorithm1.py`
compares whole runs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from adapt.numerics import Precision
from adapt.switching import push_down
from adapt.switching.adapt import AdaPT
from adapt.switching.policy import Observation

WEIGHTS = torch.linspace(-1, 1, 200)


def observed(policy, state, *, norms=1.0, norms_of_sums=1.0, loss=None, seen=True, sound=True):
    layers = len(state.formats)
    return policy.advance(
        state,
        Observation(
            loss=loss,
            norms=np.full(layers, norms),
            norms_of_sums=np.full(layers, norms_of_sums),
            seen=np.full(layers, seen),
            sound=np.full(layers, sound),
            weights=[WEIGHTS] * layers,
        ),
    )


def test_it_starts_as_the_paper_says():
    policy = AdaPT()
    state = policy.start([WEIGHTS] * 3)
    assert state.formats == (Precision(8, 4),) * 3
    assert state.lookback.tolist() == [100.0] * 3
    assert state.resolution.tolist() == [50] * 3
    assert (state.strategy, state.losses) == ("min", ())
    assert not state.gradients.any()
    assert np.isnan(state.divergence).all()
    assert (policy.buffer_bits, policy.lookback_momentum, policy.normalize_gradients) == (4, 0.33, True)


def test_bounds_may_be_lists():
    assert AdaPT(lookback=[25, 100], resolution=[50, 150]) == AdaPT()
    assert hash(AdaPT(lookback=[25, 100])) == hash(AdaPT())


@pytest.mark.parametrize("options", [{"buffer_bits": True}, {"lookback": (True, 4)}, {"resolution": (50, 150.0)}])
def test_whole_numbers_are_neither_bools_nor_floats(options):
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))} must be"):
        AdaPT(**options)


def test_a_window_ends_with_its_last_gradient_and_starts_anew():
    policy = AdaPT(lookback=(3, 3))
    state = policy.start([WEIGHTS])
    for count in (1, 2):
        state = observed(policy, state, norms=2.0)
        assert state.gradients.tolist() == [count]
        assert state.sum_of_norms.tolist() == [2.0 * count]
        assert state.formats == (Precision(8, 4),)
    state = observed(policy, state, norms=2.0)
    assert state.gradients.tolist() == [0]
    assert state.sum_of_norms.tolist() == [0.0]
    lowest = push_down(WEIGHTS, resolution=53, tolerance=0.01)
    assert state.formats[0].fraction_length > lowest.fraction_length
    assert state.divergence[0] <= 0.01


def test_lookback_and_resolution_are_adapted_before_the_window_is_measured():
    policy = AdaPT(lookback=(2, 4), lookback_momentum=1.0, resolution=(10, 20))
    state = observed(policy, policy.start([WEIGHTS]), norms=1.0, norms_of_sums=1.0)
    assert state.lookback.tolist() == [4.0], "the first gradient of a window tells nothing about its diversity"
    assert state.resolution.tolist() == [11]
    state = observed(policy, state, norms=1.0, norms_of_sums=1.0)  # Δs = 2: ⌈4/2⌉ = 2, and the window is full
    assert state.lookback.tolist() == [2.0]
    assert state.resolution.tolist() == [10]
    assert state.gradients.tolist() == [0]
    state = observed(policy, state, norms=1.0, norms_of_sums=1.0)
    assert state.lookback.tolist() == [2.0], "nor does the first one of the next window"


def test_a_layer_without_a_gradient_stands_still():
    policy = AdaPT(lookback=(2, 2))
    state = policy.start([WEIGHTS])
    for _ in range(5):
        state = observed(policy, state, seen=False, norms=math.nan)
    assert state.gradients.tolist() == [0]
    assert state.resolution.tolist() == [50]


def test_weights_that_are_not_finite_end_the_window_without_a_switch():
    policy = AdaPT(lookback=(2, 2))
    state = policy.start([torch.full((4,), math.nan)])
    for _ in range(2):
        state = observed(policy, state, sound=False)
    assert state.gradients.tolist() == [0]
    assert state.formats == (Precision(8, 4),)


def test_the_strategy_rises_on_losses_that_do_not_fall_and_forgets_old_ones():
    policy = AdaPT(lookback=(2, 3))
    state = policy.start([WEIGHTS])
    strategies = []
    for loss in (5.0, 6.0, 6.0, 1.0, math.nan, 1.0, None, 4.0):
        state = observed(policy, state, loss=loss)
        strategies.append(state.strategy)
    assert strategies == ["min", "mean", "max", "min", "min", "min", "min", "mean"]
    assert state.losses == (1.0, 1.0, 4.0), "no more than the longest lookback"


def test_the_average_loss_is_that_of_the_average_lookback():
    policy = AdaPT(lookback=(2, 10), lookback_momentum=0.0)
    state = policy.start([WEIGHTS] * 2)
    state.lookback[:] = [2.0, 3.0]
    for loss in (100.0, 1.0, 1.0, 1.0):
        state = observed(policy, state, loss=loss, seen=False)
    assert observed(policy, state, loss=2.0, seen=False).strategy == "mean", "the mean of the last three is 1"
    state.lookback[:] = [4.0, 3.0]
    assert observed(policy, state, loss=2.0, seen=False).strategy == "min", "of the last four it is 25"


def test_a_state_is_not_changed():
    policy = AdaPT(lookback=(2, 4))
    state = observed(policy, policy.start([WEIGHTS] * 2))
    before = {name: np.copy(value) for name, value in vars(state).items() if isinstance(value, np.ndarray)}
    observed(policy, state, norms=3.0, loss=1.0)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(state, name), value, name)


BOUNDS = st.tuples(st.integers(1, 60), st.integers(1, 110)).map(lambda pair: tuple(sorted(pair)))
QUOTIENTS = st.lists(st.one_of(st.just(1e9), st.floats(1, 40)), min_size=3, max_size=8)


@example((2, 2), 0.0, [1e9] * 3, 0, 1.0)
@given(
    BOUNDS,
    st.one_of(st.sampled_from([0.0, 0.33, 1.0]), st.floats(0, 1)),
    QUOTIENTS,
    st.integers(0, 100),
    st.one_of(st.none(), st.floats(1, 200)),
)
def test_patience_never_misses_a_switch(lookback, momentum, quotients, gap, before):
    """Whatever the gradients, no window ends within the steps that patience promises, nor where the state is of a run
    with other bounds."""
    policy = AdaPT(lookback=lookback, lookback_momentum=momentum, resolution=(3, 3))
    state, steps = policy.start([WEIGHTS[:5]]), 0
    if before is not None:
        state.lookback[:] = before
    while steps < 150:
        promised = policy.patience(state)
        assert 0 <= promised < lookback[1]
        for i in range(promised + 1):
            held, seen = state.gradients[0], steps % 101 != gap
            norms_of_sums = (held + 1) / quotients[steps % len(quotients)]
            state, steps = observed(policy, state, norms_of_sums=norms_of_sums, seen=seen), steps + 1
            ended = seen and state.gradients[0] == 0
            assert not ended or i == promised


@pytest.mark.parametrize(("lookback", "gradients", "expected"), [((5, 5), 0, 4), ((5, 5), 4, 0), ((1, 1), 0, 0)])
def test_patience_with_a_window_of_one_length(lookback, gradients, expected):
    policy = AdaPT(lookback=lookback)
    state = policy.start([WEIGHTS])
    state.gradients[:] = gradients
    assert policy.patience(state) == expected
