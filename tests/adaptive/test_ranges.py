"""Weights and biases that outgrow their formats: biases follow, layers are told of, policies can see it."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from tests.adaptive.test_controller import spied
from tests.training import assembled, batch, copies, net, train


def far_away(rounding="nearest", steps=200):
    """A network whose last bias has a long way to go."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(
        optimizer, model, adapt.Fixed(adapt.Precision(8, 6)), rounding=rounding, quantize_biases=True
    )
    for step in range(steps):
        optimizer.zero_grad()
        loss = (model(batch(step)[0]) - 10).square().mean()
        loss.backward()
        controller.observe(loss)
        optimizer.step()
    return model, optimizer, controller


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_biases_follow_their_values_under_a_fixed_policy(rounding):
    model, _, controller = far_away(rounding)
    masters = dict(zip(controller.all_masters[1].names, controller.all_masters[1].weights, strict=True))
    assert masters["2.bias"].abs().max() > 3
    form = controller.formats["2.bias"]
    assert form.word_length == 8
    assert (model.eval().state_dict()["2.bias"] - masters["2.bias"]).abs().max() <= float(form.step)


def test_biases_that_follow_go_on_exactly_after_a_resume():
    model, optimizer, controller = far_away(steps=40)
    saved = copies(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    other, other_optimizer, resumed = far_away(steps=0)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    for run in ((model, optimizer, controller), (other, other_optimizer, resumed)):
        train(run[0], run[1], 30, 40, run[2])
    assert resumed.formats == controller.formats
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
@pytest.mark.parametrize("part", ["weight", "bias", "layer"])
def test_a_resume_is_exact_where_biases_are_frozen_when_the_state_is_loaded(part, order):
    def build():
        model = net()
        frozen = {"weight": [model[0].weight], "bias": [model[0].bias], "layer": list(model[0].parameters())}[part]
        for parameter in frozen:
            parameter.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, adapt.attach(optimizer, model, adapt.AdaPT.compact(), quantize_biases=True)

    model, optimizer, controller = build()
    train(model, optimizer, 5, controller=controller)
    model.requires_grad_(True)
    train(model, optimizer, 5, 5, controller)
    states = {"model": copies(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
    other, other_optimizer, resumed = build()
    for name in order:
        {"model": other, "optimizer": other_optimizer}[name].load_state_dict(states[name])
    other.requires_grad_(True)
    for run in ((model, optimizer, controller), (other, other_optimizer, resumed)):
        train(run[0], run[1], 6, 10, run[2])
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


class Watching(adapt.Fixed):
    """Remembers what it sees of saturation in every step that could switch a layer."""

    def __init__(self, precision, seen):
        super().__init__(precision)
        object.__setattr__(self, "seen", seen)

    def patience(self, state):
        return 3

    def advance(self, state, observation):
        self.seen.append(observation)
        return super().advance(state, observation)


def test_a_policy_sees_the_share_of_masters_outside_of_their_range():
    seen, precision = [], adapt.Precision(4, 5)
    model, optimizer, controller = assembled(policy=Watching(precision, seen))
    train(model, optimizer, 8, controller=controller)
    found = seen[-1].saturated
    outside = [((m < precision.minimum) | (m > precision.maximum)).double().mean() for m in controller.masters.values()]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, outside)
    assert found.max() > 0


def test_saturation_is_measured_only_if_somebody_reads_it(monkeypatch):
    reads = []
    from adapt.adaptive.masters import FixedPointMasters

    monkeypatch.setattr(FixedPointMasters, "saturated", spied(FixedPointMasters.saturated, lambda: reads.append(1)))
    model, optimizer, controller = assembled()
    train(model, optimizer, 15, controller=controller)
    assert not reads


@pytest.mark.parametrize(
    "policy", [adapt.Fixed(adapt.Precision(4, 8)), adapt.AdaPT(initial=adapt.Precision(4, 8), lookback=(70, 100))]
)
def test_layers_that_stay_saturated_are_named_once(policy):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, optimizer, controller = assembled(policy=policy)
        train(model, optimizer, 80, controller=controller)
        assert len(controller.trace) == 80
    found = [str(w.message) for w in caught if "outside the range" in str(w.message)]
    assert len(found) == 2, found
    assert "0.weight" in found[0]
    assert "%" in found[0]


def test_layers_that_fit_are_not_warned_about():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, optimizer, controller = assembled(policy=adapt.Fixed(adapt.Precision(8, 5)))
        train(model, optimizer, 80, controller=controller)
        assert len(controller.trace) == 80
    assert not [w for w in caught if "outside the range" in str(w.message)]
