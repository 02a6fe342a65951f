"""`check_policy` accepts every policy of the package, and names each fault of one that is wrong."""

import itertools
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import adapt
from adapt.switching.policy import State
from adapt.testing import check_policy

EIGHT = adapt.Precision(8, 6)


@pytest.mark.parametrize(
    "policy",
    [
        adapt.AdaPT(),
        adapt.AdaPT(lookback=(2, 9), initial=None),
        adapt.AdaPT(lookback=(2, 5), push_up="diversity"),
        adapt.AdaPT.compact(),
        adapt.AdaPT.compact(bits=4),
        adapt.AdaPT.compact(bits=4, channels=True),
        adapt.Fixed(EIGHT),
        adapt.MuPPET(steps_per_epoch=5),
        adapt.CyclicPrecision(200, cycles=4),
    ],
    ids=repr,
)
def test_the_policies_of_the_package_pass(policy):
    check_policy(policy)


@dataclass(frozen=True)
class CountingState(State):
    step: int = 0


@dataclass(frozen=True)
class Good:
    """Every fifth step moves all layers between 8 and 7 bits; the faulty policies below derive from it."""

    normalize_gradients = False
    quantize_gradients = False
    sums_gradients = False
    samples_gradients = False
    keeps_gradients = False
    uses_loss = False

    def start(self, weights):
        return CountingState((EIGHT,) * len(weights), np.zeros(len(weights), np.int64))

    def patience(self, state):
        return 4 - state.step % 5

    def advance(self, state, observation):
        step = state.step + 1
        return replace(state, formats=(adapt.Precision(8 - step // 5 % 2, 6),) * len(state.formats), step=step)

    def record(self, state):
        return {}


def test_a_correct_policy_passes():
    check_policy(Good())


class TooFew(Good):
    def advance(self, state, observation):
        return replace(super().advance(state, observation), formats=state.formats[:-1])


class Tuples(Good):
    def start(self, weights):
        return replace(super().start(weights), formats=((8, 6),) * len(weights))


class Lists(Good):
    def start(self, weights):
        return replace(super().start(weights), formats=[EIGHT] * len(weights))


class NothingFromStart(Good):
    def start(self, weights):
        super().start(weights)


class NothingFromAdvance(Good):
    def advance(self, state, observation):
        super().advance(state, observation)


class NothingFromRecord(Good):
    def record(self, state):
        pass


class NegativePatience(Good):
    def patience(self, state):
        return -1


class FractionalPatience(Good):
    def patience(self, state):
        return 4.5


class Liar(Good):
    def patience(self, state):
        return 9


class EndsTooEarly(Good):
    def advance(self, state, observation):
        step = state.step + 1
        return replace(state, step=step, gradients=(state.gradients + 1) * (step % 3 != 0))

    def patience(self, state):
        return 4


class ReadsEarly(Good):
    def advance(self, state, observation):
        assert observation.weights[0].isfinite().all()
        return super().advance(state, observation)


class MutatesState(Good):
    def advance(self, state, observation):
        gradients = state.gradients
        gradients += 1
        return super().advance(replace(state, gradients=gradients), observation)


class MutatesNorms(Good):
    def advance(self, state, observation):
        observation.norms[:] = 0
        return super().advance(state, observation)


class MutatesWeights(Good):
    def patience(self, state):
        return 0

    def advance(self, state, observation):
        observation.weights[1].mul_(0.5)
        return super().advance(state, observation)


class MutatesFirstWeights(Good):
    def start(self, weights):
        weights[0].zero_()
        return super().start(weights)


counter = itertools.count()


class HiddenState(Good):
    def patience(self, state):
        return 0

    def advance(self, state, observation):
        return replace(state, formats=(adapt.Precision(2 + next(counter) // 7 % 20, 3),) * len(state.formats))


class Random(HiddenState):
    def advance(self, state, observation):
        return replace(state, formats=(adapt.Precision(random.randint(4, 8), 3),) * len(state.formats))


class WithoutDecorator(State):
    pass


class NoField(Good):
    def start(self, weights):
        state = WithoutDecorator((EIGHT,) * len(weights), np.zeros(len(weights), np.int64))
        object.__setattr__(state, "momentum", 0.5)
        return state

    def advance(self, state, observation):
        return state


@dataclass(frozen=True)
class ObjectState(CountingState):
    seen: set = field(default_factory=lambda: {EIGHT})


class DoesNotSave(Good):
    def start(self, weights):
        return ObjectState((EIGHT,) * len(weights), np.zeros(len(weights), np.int64))


@dataclass(frozen=True)
class TableState(CountingState):
    table: np.ndarray = field(default_factory=lambda: np.zeros(7))


class WrongShape(Good):
    def start(self, weights):
        return TableState((EIGHT,) * len(weights), np.zeros(len(weights), np.int64))


class WrongCounts(Good):
    def start(self, weights):
        return replace(super().start(weights), gradients=[0] * len(weights))


class AnotherClass(Good):
    def advance(self, state, observation):
        return State(state.formats, state.gradients)


class NeedsLoss(Good):
    def advance(self, state, observation):
        assert isinstance(observation.loss + 0.0, float)
        return super().advance(state, observation)


class UnknownColumn(Good):
    def record(self, state):
        return {"largest": np.zeros(len(state.formats))}


class ShortColumn(Good):
    def record(self, state):
        return {"diversity": np.zeros(1)}


class Flag(Good):
    uses_loss = "yes"


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (TooFew, r"TooFew.advance returns 2 formats for 3 layers: return one for each"),
        (Tuples, r"Tuples.start returns \(8, 6\) as a format, .*: write adapt.Precision\(8, 6\)"),
        (Lists, r"Lists.start must return formats as a tuple"),
        (NothingFromStart, r"NothingFromStart.start must return a State, got None: is a `return` missing\?"),
        (NothingFromAdvance, r"NothingFromAdvance.advance must return a State, got None: is a `return` missing\?"),
        (NothingFromRecord, r"NothingFromRecord.record must return a dict of arrays, or {}, got None"),
        (NegativePatience, r"patience must return a whole number of steps ≥ 0, got -1"),
        (FractionalPatience, r"patience must return a whole number of steps ≥ 0, got 4.5"),
        (Liar, r"Liar.patience had ruled out a switch in step 5, but advance switched layer 0: return at most"),
        (EndsTooEarly, r"patience had ruled out a switch in step 3, but advance ended the window of layer 0"),
        (ReadsEarly, r"ReadsEarly.advance reads weights, .* read them only where a layer may switch"),
        (MutatesState, r"MutatesState.advance changes the state that it is given: return a new one"),
        (MutatesNorms, r"MutatesNorms.advance changes observation.norms in place"),
        (MutatesWeights, r"MutatesWeights.advance changes observation.weights in place"),
        (MutatesFirstWeights, r"MutatesFirstWeights.start changes the weights in place"),
        (HiddenState, r"HiddenState decides differently in a second run on the same steps"),
        (Random, r"Random decides differently in a second run .* draw no random numbers"),
        (NoField, r"the state of NoField.start has momentum, which is not a field"),
        (DoesNotSave, r"seen in the state of DoesNotSave.start does not come back from a checkpoint"),
        (WrongShape, r"table in the state of WrongShape.start has shape \(7,\)"),
        (WrongCounts, r"gradients in the state of WrongCounts.start must be an int64 array of 3 counts"),
        (AnotherClass, r"AnotherClass.advance returns a State, but start a CountingState"),
        (NeedsLoss, r"NeedsLoss.advance raised TypeError in step 8, in which no loss was observed"),
        (UnknownColumn, r"UnknownColumn.record returns largest, which is no column of the trace"),
        (ShortColumn, r"ShortColumn.record returns diversity in the shape \(1,\)"),
        (Flag, r"Flag.uses_loss must be True or False, got 'yes'"),
    ],
)
def test_a_fault_is_named(policy, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_policy(policy())


def test_a_policy_that_keeps_state_itself_is_named():
    class Remembering(Good):
        def __init__(self):
            object.__setattr__(self, "calls", [])

        def advance(self, state, observation):
            self.calls.append(observation.loss)
            return super().advance(state, observation)

    with pytest.raises(AssertionError, match="Remembering changes its own attributes while it trains"):
        check_policy(Remembering())


def test_a_policy_without_a_member_is_refused():
    class Half:
        def advance(self, state, observation):
            return state

    with pytest.raises(TypeError, match="it lacks normalize_gradients"):
        check_policy(Half())
