"""Cyclic precision training: the schedule against its literal twin, and runs that follow it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.numerics import BlockFloat
from adapt.switching.cyclic import CyclicPrecision, CyclicState
from adapt.switching.saved_state import pack, unpack
from tests.references import cyclic as reference

# Whole periods of a power of two steps, so that the twin's repeated subtraction is exact.
SCHEDULES = st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(2, 8), st.integers(0, 12))


def followed(policy, steps):
    """The word length of each step of a run, and how many steps before the first change each state had promised."""
    state, words, promises = policy.start([torch.zeros(2)] * 2), [], []
    for _ in range(steps):
        words.append(state.formats[0].word_length)
        assert state.formats == (BlockFloat(words[-1]),) * 2
        promises.append(policy.patience(state))
        state = policy.advance(state, None)
    return words, promises


@given(SCHEDULES)
def test_word_lengths_equal_the_literal_schedule(schedule):
    exponent, cycles, lowest, more = schedule
    total = cycles * 2**exponent
    policy = CyclicPrecision(total, (lowest, lowest + more), cycles)
    assert followed(policy, total)[0] == reference.word_lengths(total, cycles, lowest, lowest + more)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(2, 8), st.integers(0, 12))
def test_patience_names_every_step_that_changes_the_word(total, cycles, lowest, more):
    policy = CyclicPrecision(total, (lowest, lowest + more), min(cycles, total))
    words, promises = followed(policy, total + 5)
    for i, promise in enumerate(promises):
        assert len(set(words[i : i + promise + 1])) == 1
        assert i + promise + 1 >= len(words) or words[i + promise + 1] != words[i]
    assert set(words) <= set(range(lowest, lowest + more + 1))
    assert len(set(words[total - 1 :])) == 1, "the last word length stays"


def test_it_climbs_from_the_lower_to_the_upper_bound():
    words, _ = followed(CyclicPrecision(100, (3, 8), cycles=2), 100)
    assert words[0] == words[50] == 3
    assert words[49] == words[99] == 8
    assert np.diff(words[:50]).min() == 0


def test_a_controller_follows_it():
    model = torch.nn.Linear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, model, adapt.CyclicPrecision(12, (2, 6), cycles=2), rounding="nearest")
    for _ in range(12):
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
    expected = reference.word_lengths(12, 2, 2, 6)
    assert controller.trace.word_length[:, 0].tolist() == [*expected[1:], expected[-1]]


def test_other_bounds_take_over_a_run():
    policy, state = CyclicPrecision(8, (2, 4), 1), CyclicPrecision(8, (5, 9), 1).start([torch.zeros(2)])
    assert policy.patience(state) == 0
    assert policy.advance(state, None).formats == (BlockFloat(policy.word_length(1)),)


def test_a_state_comes_back_from_a_file():
    policy = CyclicPrecision(40, (3, 8), 2)
    state = policy.start([torch.zeros(2)] * 2)
    for _ in range(7):
        state = policy.advance(state, None)
    again = unpack(pack(state), policy.start([torch.zeros(2)] * 2), 2)
    assert isinstance(again, CyclicState)
    assert (again.step, again.formats) == (7, state.formats)
    with pytest.raises(ValueError, match="step of CyclicPrecision's state must be at least 0, got -1"):
        unpack({**pack(state), "step": -1}, state, 2)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a whole number ≥ 1, got 0"),
        ({"total_steps": 10.0}, "total_steps must be a whole number ≥ 1, got 10.0"),
        ({"total_steps": 99, "cycles": 0}, "cycles must be a whole number ≥ 1, got 0"),
        ({"total_steps": 10}, "cycles must be at most total_steps, 10, got 32"),
        ({"total_steps": 99, "bits": (8, 3)}, "bits must be"),
        ({"total_steps": 99, "bits": (1, 3)}, "bits must lie between 2 and 31"),
        ({"total_steps": 99, "bits": (3, 32)}, "bits must lie between 2 and 31"),
    ],
)
def test_senseless_hyperparameters_are_refused(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        CyclicPrecision(**hyperparameters)
