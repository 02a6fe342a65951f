"""A run that is stopped after any step goes on bit for bit; what does not fit is refused before anything changes."""

import copy

import numpy as np
import pytest
import torch

import adapt
from adapt.engine.persistence import from_bytes, to_bytes
from adapt.learned import Budget, Phases
from tests.covering import picked
from tests.learned.networks import PHASES, build, given, learning, pictures, train


def state_of(model, optimizer):
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def same(one, other):
    """Whether two learners and their networks are alike, bit for bit."""
    for name, master in one.masters.items():
        if not torch.equal(master, other.masters[name]):
            return False
    if one.formats != other.formats or any(not np.array_equal(a, other.ranges[name]) for name, a in one.ranges.items()):
        return False
    traces = (one.trace.word_length, other.trace.word_length), (one.trace.step, other.trace.step)
    widths = (one.widths.word_length, other.widths.word_length), (one.widths.step, other.widths.step)
    return all(np.array_equal(a, b) for a, b in (*traces, *widths)) and one.log == other.log


@pytest.mark.parametrize("stop", picked([1, 4, 6, 11, 23, 24, 26, 29, 30, 31, 33, 38], 1, 11, 24, 30, 33))
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


@pytest.mark.parametrize("setup", [learning, lambda: given(3, activation_bits=3)], ids=["learned", "lsq"])
def test_resume_between_micro_batches_is_bit_for_bit(setup):
    def micro(model, optimizer, learner, batches):
        for batch in batches:
            inputs, targets = pictures(batch)
            loss = torch.nn.functional.cross_entropy(model(inputs), targets) / 2
            loss.backward()
            learner.observe(loss)
            if batch % 2:
                optimizer.step()
                optimizer.zero_grad()

    model, optimizer, learner = setup()
    micro(model, optimizer, learner, range(15))
    state = state_of(model, optimizer)
    micro(model, optimizer, learner, range(15, 20))
    again, other_optimizer, resumed = setup()
    again.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    micro(again, other_optimizer, resumed, range(15, 20))
    assert same(learner, resumed)
    assert "micro_gradients" not in learner.state_dict()


def test_gradients_that_are_thrown_away_are_not_saved():
    _model, _optimizer, learner = learning()
    learner.observe(1.0)
    assert "micro_gradients" in learner.state_dict()
    learner.forget_losses()
    assert "micro_gradients" not in learner.state_dict()


def test_a_resumed_run_keeps_its_peak_rate():
    model, optimizer, _ = learning()
    train(model, optimizer, 10)
    state = state_of(model, optimizer)
    train(model, optimizer, 1, first=10)
    again, other_optimizer = build()
    other_optimizer.param_groups[0]["lr"] = 7.0
    learning(again, other_optimizer)
    again.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(again, other_optimizer, 1, first=10)
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("late", [False, True])
def test_a_state_of_longer_phases_settles_and_freezes(late):
    model, optimizer, _ = learning()
    train(model, optimizer, 20)
    state = state_of(model, optimizer)
    again, other_optimizer = build(seed=5)
    shorter = Phases(4, 12, 8)
    # As a Lightning fit, which knows its length once the state is there.
    _, _, resumed = learning(again, other_optimizer, phases=Phases(0, 10**9, 0) if late else shorter)
    again.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    resumed.use_phases(shorter)
    train(again, other_optimizer, 4, first=20)
    assert [entry["phase"] for entry in resumed.log] == ["pretraining", "learning", "finetuning"]
    assert resumed.size.weight_bits <= 4 * (1 + 1e-9)


def test_layers_are_not_matched_by_name():
    _, _, learner = learning()
    with pytest.raises(ValueError, match="strict must be True, got False: learned formats resume with all layers"):
        learner.load_state_dict(learner.state_dict(), strict=False)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_lsq_resumes_bit_for_bit(power_of_two):
    options = {"activation_bits": 3, "power_of_two": power_of_two}
    model, optimizer, learner = given(3, **options)
    train(model, optimizer, 5)
    state = state_of(model, optimizer)
    train(model, optimizer, 5, first=5)
    again, other_optimizer, resumed = given(3, **options)
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


def changed_inside(state, field, **changes):
    """Change something within a part that is kept as bytes."""
    state[field] = to_bytes(from_bytes(state[field]) | changes)


def foreign(field):
    """A part, kept as bytes, of another network's state."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adapt.learned.attach(optimizer, model, weight_budget=Budget(bits=4), phases=PHASES)
    return optimizer.state_dict()["adapt"][field]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(kind="FixedWidths"), "is of FixedWidths, not of LearnedWidths"),
        (lambda s: s.update(version=7), "has version 7, but this package reads versions up to 2"),
        (lambda s: s["layers"].pop(), "of another network"),
        (lambda s: s["names"].pop(), "of another network"),
        (lambda s: s.update(step="3"), "should hold 'step' as int"),
        (lambda s: s["masters"].pop("head.weight"), "'masters' of head.weight"),
        (lambda s: s["formats"].pop("step"), "should hold 'formats' of step"),
        (lambda s: s["formats"]["step"].zero_(), "above 0"),
        (lambda s: s["formats"]["maximum"].fill_(torch.inf), "finite"),
        (lambda s: s["formats"].update(follows=1), "'follows' as bool"),
        (lambda s: s.update(energy=torch.zeros(2)), "'energy'"),
        (lambda s: s.update(trace=b"nothing"), "damaged"),
        (lambda s: s.update(rule=None), "should hold 'rule' as bytes"),
        (lambda s: s.update(rule=to_bytes({})), "should hold the rule's kind and count"),
        (lambda s: s.update(rule=to_bytes([])), "should hold the rule's kind and count"),
        (lambda s: changed_inside(s, "rule", count=-1), "should hold the rule's kind and count"),
        (lambda s: changed_inside(s, "rule", mean=torch.zeros(2, 3, dtype=torch.float64)), "'rule' of mean"),
        (lambda s: changed_inside(s, "rule", square=None), "'rule' of square"),
        (lambda s: s.update(log=to_bytes({})), "should hold the log"),
        (lambda s: s.update(log=to_bytes({"phases": [{}], "missed": {}})), "should hold the log"),
        (lambda s: s.update(log=to_bytes({"phases": [], "missed": {"a": None}})), "should hold the log"),
        (lambda s: s.update(trace=to_bytes({})), "trace or the widths of the precision state are damaged"),
        (lambda s: s.update(widths=to_bytes({})), "trace or the widths of the precision state are damaged"),
        (lambda s: s.update(widths=to_bytes(None)), "trace or the widths of the precision state are damaged"),
        (lambda s: s.update(trace=foreign("trace")), "should hold the trace of this network"),
        (lambda s: s.update(widths=foreign("widths")), "should hold the widths of this network"),
        (lambda s: s.update(step=5), "is of step 5, but its trace go"),
        (lambda s: s.update(step=-5), "'step' as a number of steps ≥ 0, got -5"),
        (lambda s: s.update(count=-1), "'count' as a number of steps ≥ 0, got -1"),
        (lambda s: s.update(frozen=True), "'settled' as True where 'frozen' is True"),
        (lambda s: s.update(gradients=[None]), "'gradients' as a list of numbers"),
        (lambda s: s.update(micro_losses=["1"]), "'micro_losses' as a list of numbers"),
        (lambda s: s.update(micro_gradients={"head.weight": torch.ones(2)}), "'micro_gradients' of head.weight"),
        (lambda s: s.update(micro_gradients=[]), "'micro_gradients' by name"),
        (lambda s: s["formats"]["numel"].fill_(1), "sizes of this network's weights"),
    ],
    ids=range(35),
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
    for part in ("masters", "formats"):
        for name, value in before[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[part][name]))
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
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
