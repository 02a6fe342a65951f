"""States of policies: carried to other layers, packed for a file, unpacked from one that may be wrong."""

import dataclasses
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt.numerics import Precision
from adapt.switching.adapt import AdaPT, AdaPTState
from adapt.switching.policy import State
from adapt.switching.saved_state import carry, pack, unpack
from tests.training import through_a_file

FORMATS = st.builds(Precision, st.integers(2, 32), st.integers(-20, 40))
NUMBERS = st.floats(0, 1e6)


@st.composite
def states(draw, layers=None):
    layers = draw(st.integers(1, 5)) if layers is None else layers

    def floats(elements=NUMBERS):
        return np.array(draw(st.lists(elements, min_size=layers, max_size=layers)), np.float64)

    def integers(least=0):
        return np.array(draw(st.lists(st.integers(least, 1000), min_size=layers, max_size=layers)), np.int64)

    return AdaPTState(
        formats=tuple(draw(st.lists(FORMATS, min_size=layers, max_size=layers))),
        gradients=integers(),
        lookback=1 + floats(),
        resolution=integers(1),
        sum_of_norms=floats(),
        diversity=1 + floats(st.one_of(NUMBERS, st.just(np.inf))),
        divergence=floats(st.one_of(NUMBERS, st.just(np.nan))),
        strategy=draw(st.sampled_from(["min", "mean", "max"])),
        losses=tuple(draw(st.lists(st.floats(-10, 10), max_size=4))),
        rounding_cost=floats(st.one_of(st.floats(-1, 1), st.just(np.nan))),
    )


def same(first, second):
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other, name)
        else:
            assert value == other, name
    return type(first) is type(second)


def fresh(layers):
    return AdaPT().start([torch.zeros(2)] * layers)


@given(states())
def test_a_packed_state_comes_back_from_a_file(state):
    assert same(unpack(through_a_file(pack(state)), fresh(1), len(state.formats)), state)


@given(states(), st.data())
def test_carrying_keeps_what_both_have_and_starts_what_is_new(old, data):
    layers = data.draw(st.integers(1, 5))
    new = data.draw(states(layers))
    olds = list(range(len(old.formats)))
    chosen = data.draw(st.dictionaries(st.integers(0, layers - 1), st.sampled_from(olds)))
    carried = carry(old, new, chosen)
    for i in range(layers):
        source, j = (old, chosen[i]) if i in chosen else (new, i)
        for field in (name for name, value in vars(new).items() if isinstance(value, np.ndarray)):
            np.testing.assert_array_equal(getattr(carried, field)[i], getattr(source, field)[j])
        assert carried.formats[i] == source.formats[j]
    assert (carried.strategy, carried.losses) == (old.strategy, old.losses)


@given(states())
def test_carrying_and_packing_share_no_memory(state):
    carried = carry(state, state, {i: i for i in range(len(state.formats))})
    packed, before = pack(state), state.gradients.copy()
    carried.gradients[:] = -1
    packed["gradients"].fill_(-1)
    np.testing.assert_array_equal(state.gradients, before)
    unpacked = unpack(pack(state), fresh(1), len(state.formats))
    unpacked.gradients[:] = -1
    np.testing.assert_array_equal(state.gradients, before)


@dataclass(frozen=True)
class Tall(State):
    """A state with more than one number for each layer."""

    history: np.ndarray
    count: int = 0


def test_states_may_hold_a_row_for_each_layer():
    state = Tall((None, Precision(4, 2)), np.array([1, 2]), np.arange(6.0).reshape(2, 3), 7)
    model = Tall((None,), np.zeros(1, np.int64), np.zeros((1, 3)))
    assert same(unpack(pack(state), model, 2), state)
    carried = carry(state, replace(model, history=np.ones((1, 3))), {0: 1})
    assert carried.history.tolist() == [[3.0, 4.0, 5.0]]
    assert carried.count == 7


@dataclass(frozen=True)
class Taller(Tall):
    """The same state in a later release."""

    name: str = "unnamed"
    spread: np.ndarray = dataclasses.field(default_factory=lambda: np.array(0.5))
    lengths: np.ndarray = 7
    path: tuple[float, ...] = (1.0,)


def test_fields_that_a_state_lacks_take_their_defaults():
    state = Tall((None, Precision(4, 2)), np.array([1, 2]), np.arange(6.0).reshape(2, 3), 7)
    model = Taller(
        (None,),
        np.zeros(1, np.int64),
        np.zeros((1, 3)),
        spread=np.zeros((1, 2), np.float32),
        lengths=np.zeros(1, np.int64),
    )
    later = unpack(pack(state), model, 2)
    assert same(later, Taller(*vars(state).values(), spread=np.full((2, 2), 0.5, np.float32), lengths=np.array([7, 7])))
    assert same(unpack(pack(later), model, 2), later)


def test_a_state_of_a_later_release_is_refused_with_its_name():
    state = {**pack(fresh(2)), "mass": 1, "charge": 2}
    with pytest.raises(ValueError, match=r"holds 'charge', 'mass', which AdaPTState .* load it with adapt 0\.9, which"):
        unpack(state, fresh(1), 2, release="0.9")
    with pytest.raises(ValueError, match="load it with the release that wrote it or a later one"):
        unpack(state, fresh(1), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("losses"), "state lacks 'losses', without which AdaPTState cannot resume"),
        (
            lambda p: p.update(extra=1),
            "state holds 'extra', which AdaPTState of this release does not know: load it with",
        ),
        (lambda p: p.update(formats=[[8, 4]]), "should list a format for each of 2 layers"),
        (lambda p: p.update(formats=None), "should list a format for each of 2 layers"),
        (lambda p: p.update(formats=[[8, 4], [8]]), r"a format should be packed as \[word length"),
        (lambda p: p.update(formats=[[8, 4], [99, 4]]), "word_length"),
        (lambda p: p.update(gradients=torch.zeros(3, dtype=torch.int64)), r"'gradients' should be int64 \[2\]"),
        (lambda p: p.update(gradients=torch.zeros(2)), r"'gradients' should be int64 \[2\]"),
        (lambda p: p.update(lookback=[100.0, 100.0]), r"'lookback' should be float64 \[2\]"),
        (lambda p: p.update(lookback=torch.full((2,), np.nan, dtype=torch.float64)), "'lookback' should be numbers"),
        (lambda p: p.update(strategy=3), "'strategy' should be a str, got 3"),
        (lambda p: p.update(losses="low"), r"'losses' should be a list.*, got 'low'"),
    ],
)
def test_a_wrong_state_is_refused(change, message):
    packed = pack(fresh(2))
    change(packed)
    with pytest.raises(ValueError, match=message):
        unpack(packed, fresh(1), 2)
