"""A run that is stopped after any step goes on bit for bit; what does not fit is refused before anything changes."""

import copy

import numpy as np
import pytest
import torch

import adapt
from tests.learned.networks import PHASES, build, given, learning, train


def state_of(model, optimizer):
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def same(one, other):
    """Whether two learners and their networks are alike, bit for bit."""
    for name, master in one.masters.items():
        if not torch.equal(master, other.masters[name]):
            return False
    for name, form in one.formats.items():
        if not all(np.array_equal(a, b) for a, b in zip(form, other.formats[name], strict=True)):
            return False
    traces = (one.trace.word_length, other.trace.word_length), (one.trace.step, other.trace.step)
    widths = (one.widths.word_length, other.widths.word_length), (one.widths.step, other.widths.step)
    return all(np.array_equal(a, b) for a, b in (*traces, *widths)) and one.log == other.log


@pytest.mark.parametrize("stop", [1, 4, 6, 11, 23, 24, 26, 29, 30, 31, 33, 38])
def test_resume_is_bit_for_bit(stop, tmp_path):
    model, optimizer, learner = learning()
    train(model, optimizer, stop)
    adapt.save(state_of(model, optimizer), tmp_path / "run.pt")
    train(model, optimizer, PHASES.total - stop, first=stop)

    again, other_optimizer = build(seed=5)
    _, _, resumed = learning(again, other_optimizer)
    state = adapt.load(tmp_path / "run.pt")
    again.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    assert resumed.step == stop
    train(again, other_optimizer, PHASES.total - stop, first=stop)
    assert same(learner, resumed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.norm.momentum == model.norm.momentum


def test_lsq_resumes_bit_for_bit():
    model, optimizer, learner = given(3, activation_bits=3)
    train(model, optimizer, 5)
    state = state_of(model, optimizer)
    train(model, optimizer, 5, first=5)
    again, other_optimizer, resumed = given(3, activation_bits=3)
    again.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(again, other_optimizer, 5, first=5)
    assert same(learner, resumed)


def test_loading_into_a_run_that_is_further_goes_back():
    model, optimizer, learner = learning()
    train(model, optimizer, 8)
    state = state_of(model, optimizer)
    train(model, optimizer, PHASES.total - 8, first=8)
    formats = learner.formats
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert learner.phase == "learning"
    train(model, optimizer, PHASES.total - 8, first=8)
    for name, form in formats.items():
        assert np.array_equal(form.step, learner.formats[name].step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(kind="FixedWidths"), "is of FixedWidths, not of LearnedWidths"),
        (lambda s: s.update(version=7), "has version 7, but this package reads 1"),
        (lambda s: s["layers"].pop(), "of another network"),
        (lambda s: s["names"].pop(), "of another network"),
        (lambda s: s.update(step="3"), "should hold 'step' as int"),
        (lambda s: s["masters"].pop("head.weight"), "'masters' of head.weight"),
        (lambda s: s["formats"].pop("step"), "state of the formats should hold 'step'"),
        (lambda s: s["formats"]["step"].zero_(), "above 0"),
        (lambda s: s["formats"]["maximum"].fill_(torch.inf), "finite"),
        (lambda s: s.update(energy=torch.zeros(2)), "'energy'"),
        (lambda s: s.update(trace=b"nothing"), "damaged"),
        (lambda s: s.update(rule=None), "should hold 'rule' as bytes"),
    ],
    ids=range(12),
)
def test_what_does_not_fit_is_refused_and_nothing_changes(change, message):
    model, optimizer, _learner = learning()
    train(model, optimizer, 8)
    broken = copy.deepcopy(optimizer.state_dict())
    change(broken["adapt"])
    before = copy.deepcopy(optimizer.state_dict()["adapt"])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(broken)
    after = optimizer.state_dict()["adapt"]
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name])
        elif not isinstance(value, dict):
            assert value == after[name], name
    for name, master in before["masters"].items():
        assert torch.equal(master, after["masters"][name])
    train(model, optimizer, 2, first=8)


def test_other_kinds_of_controllers_are_told_apart():
    _model, optimizer, _ = learning()
    learned = copy.deepcopy(optimizer.state_dict())
    other, other_optimizer = build()
    adapt.attach(other_optimizer, other)
    with pytest.raises(ValueError, match="precision state"):
        other_optimizer.load_state_dict(learned)
    with pytest.raises(ValueError, match="another kind of controller"):
        optimizer.load_state_dict(other_optimizer.state_dict())


def test_plain_weights_become_masters():
    model, _optimizer, learner = learning()
    plain, _ = build(seed=3)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(learner.masters["head.weight"], plain.head.weight)
    assert not torch.equal(model.head.weight, plain.head.weight)
