"""MuPPET's policy against its literal twin, over runs whose gradients are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.numerics import BlockFloat, Precision
from adapt.switching import inter_epoch_diversity, switching_threshold
from adapt.switching.fixed import FOREVER
from adapt.switching.muppet import MuPPET
from adapt.switching.policy import Observation
from adapt.switching.saved_state import carry, pack, unpack
from tests.references import muppet as twin

SIZES = (5, 1, 12)


def gradients_of(epochs, seed, agreement):
    """Each epoch's last gradient of each layer: a common direction, more or less of it; some missing, some broken."""
    generator = np.random.default_rng(seed)
    directions = [generator.normal(size=size) for size in SIZES]
    epochs_of_gradients = []
    for _ in range(epochs):
        share = generator.uniform(0, agreement)
        epoch = [share * d + generator.normal(size=d.shape) for d in directions]
        fate = generator.uniform(size=len(SIZES))
        for layer in np.flatnonzero(fate < 0.1):
            epoch[layer] = None if fate[layer] < 0.05 else epoch[layer] * np.nan
        epochs_of_gradients.append(epoch)
    return epochs_of_gradients


class Run:
    """What the controller does with a policy: sums where it should, clears where windows end."""

    def __init__(self, policy):
        self.policy = policy
        self.state = policy.start([torch.zeros(size) for size in SIZES])
        self.sums = [np.zeros(size) for size in SIZES]

    def step(self, gradients):
        """One step with these gradients, None where there is none."""
        seen = np.array([g is not None and bool(np.isfinite(g).all()) for g in gradients])
        if self.policy.patience(self.state) == 0:
            for layer in np.flatnonzero(seen):
                self.sums[layer] = self.sums[layer] + gradients[layer]
        self.state = self.policy.advance(
            self.state,
            Observation(
                loss=None,
                norms=np.array([math.nan if g is None else np.linalg.norm(g) for g in gradients]),
                norms_of_sums=np.array([np.linalg.norm(total) for total in self.sums]),
                seen=seen,
                sound=np.ones(len(SIZES), bool),
                weights=[],
            ),
        )
        for layer in np.flatnonzero(self.state.gradients == 0):
            self.sums[layer] = np.zeros(SIZES[layer])

    def epoch(self, last):
        """An epoch whose other gradients are nobody's business."""
        for _ in range(self.policy.steps_per_epoch - 1):
            before = self.state
            assert self.policy.patience(before) > 0
            self.step([np.full(size, 1e9) for size in SIZES])
            assert self.state.formats == before.formats
        self.step(last)


@given(
    seed=st.integers(0, 2**31),
    agreement=st.sampled_from([0.0, 1.0, 3.0, 10.0]),
    steps_per_epoch=st.integers(1, 4),
    window=st.integers(2, 4),
    violations=st.integers(1, 3),
    schedule=st.sampled_from([(8, 12, 14, 16), (4,), (2, 31)]),
    amplitude=st.sampled_from([0.0, 0.2, 1.5]),
)
def test_a_run_is_that_of_the_twin(seed, agreement, steps_per_epoch, window, violations, schedule, amplitude):
    threshold = (1.0, amplitude, 0.1)
    gradients = gradients_of(40, seed, agreement)
    words, diversities = twin.word_lengths(gradients, schedule, window, violations, threshold)
    run = Run(MuPPET(steps_per_epoch, schedule, window, violations, threshold))
    found, measured = [], []
    for epoch, last in enumerate(gradients):
        finished = run.state.word_length == 32
        run.epoch(last) if not finished else run.step(last)
        found.append(run.state.word_length)
        if not finished and (epoch + 1) % window == 0:
            measured.append(run.state.diversity.tolist())
        expected = None if words[epoch] == 32 else BlockFloat(words[epoch])
        assert run.state.formats == (expected,) * len(SIZES)
    assert found == words
    np.testing.assert_allclose(measured, diversities, rtol=1e-9)


def test_twin_and_policy_go_all_the_way_up():
    """What the comparison is worth: runs that do switch, and end in float32."""
    gradients = gradients_of(60, 1, 10.0)
    words, _ = twin.word_lengths(gradients, window=2, patience=1, threshold=(1.0, 0.0, 0.0))
    assert [word for i, word in enumerate(words) if word != words[i - 1]] == [8, 12, 14, 16, 32]
    assert words == sorted(words)


def test_two_violations_switch_and_the_maximum_begins_anew():
    run = Run(MuPPET(steps_per_epoch=1, window=2))

    def window(share):
        """Two gradients at an angle: Δs = 1/(1 + share)."""
        first = [np.eye(size)[0] for size in SIZES]
        run.step(first)
        second = [share * g + math.sqrt(1 - share**2) * np.roll(g, 1) for g in first]
        second[1] = first[1] * share  # one weight has no other direction
        run.step(second)
        return run.state

    spread = window(-0.9)
    assert (spread.violations, spread.word_length) == (0, 8)
    assert spread.maximum > 5
    agreeing = window(0.9)
    assert (agreeing.violations, agreeing.maximum) == (1, spread.maximum)
    # Windows without a violation in between change nothing.
    again = window(-0.9)
    assert (again.violations, again.maximum, again.word_length) == (1, spread.maximum, 8)
    switched = window(0.9)
    assert (switched.word_length, switched.violations, switched.maximum) == (12, 0, 0.0)
    # The same agreement is no violation against a maximum of its own.
    assert window(0.9).violations == 0
    assert window(0.9).violations == 0


def test_the_threshold_falls_from_the_start_of_training():
    assert switching_threshold(0) == 2.5
    assert switching_threshold(10) == pytest.approx(1 + 1.5 / math.e)
    assert switching_threshold(3, 1.1, 2.0, 0.5) == pytest.approx(1.1 + 2 * math.exp(-1.5))
    assert switching_threshold(1000) == pytest.approx(1)


def test_diversity_between_epochs():
    found = inter_epoch_diversity(
        np.array([2.0, 2.0, 2.0, 0.0, np.inf, 1.0]), np.array([2.0, math.sqrt(2), 0.0, 0.0, 1.0, np.inf])
    )
    np.testing.assert_allclose(found, [0.5, 1.0, np.inf, np.inf, np.inf, np.inf])


def test_a_window_in_which_nothing_can_be_measured_is_not_judged():
    run = Run(MuPPET(steps_per_epoch=1, window=2, violations=1, threshold=(0.0, 0.0, 0.0)))
    for _ in range(4):
        run.step([None, np.zeros(1), np.full(12, np.inf)])
    assert (run.state.word_length, run.state.violations, run.state.maximum) == (8, 0, 0.0)
    assert np.isinf(run.state.diversity).all()
    assert run.state.gradients.tolist() == [0, 0, 0]


def test_only_the_last_step_of_an_epoch_can_switch():
    run = Run(MuPPET(steps_per_epoch=3, word_lengths=(8,), window=2, violations=1, threshold=(0.0, 0.0, 0.0)))
    patience = []
    for _ in range(6):
        patience.append(run.policy.patience(run.state))
        run.step([np.ones(size) for size in SIZES])
    assert patience == [2, 1, 0] * 2
    assert run.state.formats == (None,) * 3
    assert run.policy.patience(run.state) == FOREVER
    before = run.state
    run.step([np.ones(size) for size in SIZES])
    assert run.state is before


def test_a_layer_that_joins_takes_over_the_word_length_of_the_network():
    policy = MuPPET(steps_per_epoch=2)
    old = replace(policy.start([torch.zeros(2)]), word_length=14, epochs=7, steps=1)
    carried = carry(old, policy.start([torch.zeros(2)] * 3), {1: 0})
    assert carried.formats == (BlockFloat(14),) * 3
    assert (carried.epochs, carried.steps) == (7, 1)


@pytest.mark.parametrize("word_length", [8, 32])
def test_a_packed_state_comes_back(word_length):
    policy = MuPPET(steps_per_epoch=2)
    state = replace(policy.start([torch.zeros(2)] * 2), word_length=word_length, violations=1, maximum=2.5, epochs=4)
    packed = pack(state)
    assert packed["formats"] == ([None, None] if word_length == 32 else [["block", 8]] * 2)
    back = unpack(packed, policy.start([torch.zeros(2)]), 2)
    assert back.formats == state.formats
    assert (back.violations, back.maximum, back.epochs, back.word_length) == (1, 2.5, 4, word_length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word_length": 40}, "word_length must lie between 2 and 32"),
        ({"violations": -1}, "violations of MuPPET's state must be a finite number ≥ 0, got -1"),
        ({"maximum": math.nan}, "maximum of MuPPET's state must be a finite number ≥ 0, got nan"),
        ({"steps": 1.0}, "'steps' should be a int"),
        ({"formats": [["block", 99]]}, "word_length must lie between 2 and 32"),
        ({"formats": [["blocks", 8]]}, r'a format should be packed as .*\["block", word length\] or None'),
        ({"formats": [["block", "8"]]}, "a format should be packed as"),
    ],
)
def test_a_wrong_state_is_refused(change, message):
    policy = MuPPET(steps_per_epoch=2)
    with pytest.raises(ValueError, match=message):
        unpack(pack(policy.start([torch.zeros(2)])) | change, policy.start([torch.zeros(2)]), 1)


def test_a_state_of_adapt_is_in_fixed_point():
    packed = pack(adapt.AdaPT().start([torch.zeros(2)]))
    for form in (None, ["block", 8]):
        with pytest.raises(ValueError, match="formats must be fixed point for every layer"):
            unpack(packed | {"formats": [form]}, adapt.AdaPT().start([torch.zeros(2)]), 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be a whole number ≥ 1, got 0"),
        ({"steps_per_epoch": 2.0}, ValueError, r"steps_per_epoch must be a whole number ≥ 1, got 2\.0"),
        ({"steps_per_epoch": True}, ValueError, "steps_per_epoch must be a whole number ≥ 1, got True"),
        ({"window": 1}, ValueError, "window must be a whole number ≥ 2, got 1"),
        ({"violations": 0}, ValueError, "violations must be a whole number ≥ 1, got 0"),
        ({"word_lengths": ()}, TypeError, r"word_lengths must be whole numbers of bits .*, got \(\)"),
        ({"word_lengths": 8}, TypeError, "word_lengths must be whole numbers of bits .*, got 8"),
        ({"word_lengths": (8, 8)}, ValueError, r"word_lengths must increase .*, got \(8, 8\)"),
        ({"word_lengths": (8, 32)}, ValueError, r"between 2 and 31 bits \(float32 follows by itself\)"),
        ({"word_lengths": (1, 8)}, ValueError, "word_lengths must increase and lie between 2 and 31"),
        ({"threshold": (1, 1.5)}, TypeError, r"threshold must be three numbers \(offset, amplitude, decay\)"),
        ({"threshold": (1, -1.5, 0.1)}, ValueError, "threshold must be finite numbers ≥ 0"),
        ({"threshold": (1, math.nan, 0.1)}, ValueError, "threshold must be finite numbers ≥ 0"),
        ({"quantize_gradients": 1}, TypeError, "quantize_gradients must be True or False, got 1"),
    ],
)
def test_hyperparameters(options, error, message):
    with pytest.raises(error, match=message):
        MuPPET(**options)


def test_the_length_of_an_epoch_must_be_known_to_start():
    with pytest.raises(ValueError, match=r"give steps_per_epoch=len\(loader\)"):
        MuPPET().start([torch.zeros(2)])


def test_it_needs_sums_of_some_gradients_and_no_loss():
    policy = MuPPET()
    assert policy.sums_gradients
    assert policy.samples_gradients
    assert not any([policy.keeps_gradients, policy.uses_loss, policy.normalize_gradients, policy.quantize_gradients])
    assert MuPPET() == MuPPET(word_lengths=(8, 12, 14, 16), window=3, violations=2, threshold=(1.0, 1.5, 0.1))
    assert Precision(8, 0) not in MuPPET(steps_per_epoch=1).start([torch.zeros(1)]).formats
