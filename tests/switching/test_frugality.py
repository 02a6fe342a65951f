import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt.numerics import Precision
from adapt.switching import fewest_integer_bits, push_up_by_loss, rounding_cost
from tests.references import adapt_equations as reference

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)
TINY = Precision(8, 4)


PENALTIES = st.sampled_from([0.0, 0.125, 3.0])


@given(VALUES, st.integers(2, 10), st.integers(-6, 12), PENALTIES, PENALTIES, st.data())
def test_cost_equals_the_literal_sum(weights, word_length, fraction_length, l1, l2, data):
    numbers = st.lists(st.floats(-10, 10, width=32), min_size=len(weights), max_size=len(weights))
    gradients = torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=4)))
    precision = Precision(word_length, fraction_length)
    cost = rounding_cost(gradients.sum(0), len(gradients), torch.tensor(weights), precision, l1=l1, l2=l2)
    expected = reference.rounding_cost(list(gradients.numpy()), weights, word_length, fraction_length, l1, l2)
    errors = adapt.quantize(torch.tensor(weights), precision).double() - torch.tensor(weights).double()
    pulls = gradients.abs().sum(0) + l1 + l2 * torch.tensor(weights).abs()
    assert cost == pytest.approx(expected, abs=1e-6 * float(pulls.double() @ errors.abs()) + 1e-30)


def test_cost_is_twice_what_rounding_costs_at_the_minimum_of_a_parabola():
    target = torch.tensor([0.3, -0.7, 0.05])
    precision = Precision(4, 1)
    rounded = adapt.quantize(target, precision)
    loss = (rounded - target).square().sum() / 2
    cost = rounding_cost(5 * (rounded - target), 5, target, precision)
    assert cost == pytest.approx(2 * float(loss))


def test_cost_needs_a_gradient():
    with pytest.raises(ValueError, match="gradients must be at least 1, got 0"):
        rounding_cost(torch.zeros(3), 0, torch.zeros(3), TINY)


@pytest.mark.parametrize(
    ("cost", "floor", "expected"),
    [
        (1.01, 0, 5),
        (1.0, 0, 4),
        (0.125, 0, 4),
        (0.12, 0, 3),
        (-0.12, 2, 3),
        (-0.13, 0, 4),
        (0.0, 3, 4),
        (0.0, 4, 4),
        (0.0, 6, 6),
        (2.0, 9, 9),
        (math.nan, 0, 4),
    ],
)
def test_the_fraction_moves_a_bit_at_a_time_above_its_floor(cost, floor, expected):
    assert push_up_by_loss(Precision(8, floor), TINY, cost, allowed=1.0) == expected


def test_the_fraction_ends_where_formats_end():
    assert push_up_by_loss(TINY, Precision(8, 126), 2.0, allowed=1.0) == 126


@given(VALUES, st.integers(-8, 20))
def test_integer_bits_equal_the_literal_search(weights, fraction_length):
    weights = np.float32(weights)
    answer = fewest_integer_bits(torch.from_numpy(weights), fraction_length)
    assert answer == reference.fewest_integer_bits(weights, fraction_length)
    assert 2 <= answer + fraction_length <= 32


def test_an_outlier_is_not_worth_a_bit():
    torch.manual_seed(0)
    weights = torch.rand(10_000) * 2 - 1
    assert fewest_integer_bits(weights, 3) == 1
    assert fewest_integer_bits(torch.cat([weights, torch.tensor([1.9])]), 3) == 1
    assert fewest_integer_bits(torch.cat([weights, torch.full((1000,), 1.9)]), 3) == 2


@pytest.mark.parametrize("weights", [torch.zeros(0), torch.zeros(4)])
def test_nothing_needs_two_bits(weights):
    assert fewest_integer_bits(weights, 5) == -3


def test_compact_is_adapt_with_other_hyperparameters():
    policy = adapt.AdaPT.compact()
    assert isinstance(policy, adapt.AdaPT)
    changes = {"initial": None, "buffer_bits": 0, "kl_tolerance": 2.0, "normalize_gradients": False, "push_up": "loss"}
    assert policy == dataclasses.replace(adapt.AdaPT(), **changes)


@pytest.mark.parametrize("tolerance", [0, -1.0, math.inf, math.nan, "much"])
def test_a_senseless_loss_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match="loss_tolerance must be a share of the loss above 0"):
        adapt.AdaPT(push_up="loss", loss_tolerance=tolerance)


def blobs(generator):
    """Two classes that a boundary of several digits tells apart: coarse weights cannot draw it."""
    inputs = torch.randn(64, 8, generator=generator)
    rule = torch.tensor([1.0, -0.31, 0.17, 0.083, -0.62, 0.41, -0.23, 0.11])
    return inputs, (inputs @ rule > 0.05).long()


def trained(policy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = adapt.ASGD(model, lr=0.1, momentum=0.9, policy=policy, rounding="nearest")
    generator = torch.Generator().manual_seed(1)
    for _ in range(600):
        inputs, labels = blobs(generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.controller.observe(loss)
        optimizer.step()
    model.eval()
    inputs, labels = blobs(torch.Generator().manual_seed(2))
    for _ in range(20):
        more = blobs(generator)
        inputs, labels = torch.cat([inputs, more[0]]), torch.cat([labels, more[1]])
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(inputs), labels))
    return loss, optimizer.controller


def test_layers_that_start_too_low_are_rescued():
    too_low = Precision(2, 1)
    stuck, _ = trained(adapt.Fixed(too_low))
    # Push-down would be content with two bits: all that is above them, push-up has brought.
    rescue = dataclasses.replace(adapt.AdaPT.compact(), initial=too_low, kl_tolerance=30.0, lookback=(10, 20))
    rescued, controller = trained(rescue)
    assert rescued < stuck / 2
    words = controller.trace.word_length
    assert (words[0] == 2).all()
    assert words[-1].max() > 3
    assert (np.abs(np.diff(controller.trace.fraction_length, axis=0)) <= 1).all()


def test_compact_gives_bits_back_when_the_loss_does_not_need_them():
    _, controller = trained(dataclasses.replace(adapt.AdaPT.compact(), initial=Precision(16, 12), lookback=(10, 20)))
    words = controller.trace.word_length
    assert (words[-1] < words[0]).all()


def test_without_losses_push_down_decides_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    policy = dataclasses.replace(adapt.AdaPT.compact(), lookback=(5, 5), resolution=(50, 50))
    optimizer = adapt.ASGD(model, lr=0.0, policy=policy)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        inputs, labels = blobs(generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        with pytest.warns(UserWarning, match="never saw the loss") if step == 0 else contextlib.nullcontext():
            optimizer.step()
    for name, master in optimizer.controller.masters.items():
        lowest = adapt.switching.push_down(master, resolution=50, tolerance=2.0)
        assert optimizer.controller.precisions[name].fraction_length == lowest.fraction_length


def test_a_trained_network_is_refined_without_losing_it():
    """From ⟨8, 4⟩ the small weights would round to zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
        model[2].weight.mul_(100)
    before = [p.detach().clone() for p in model.parameters() if p.ndim > 1]
    controller = adapt.ASGD(model, lr=0.1, policy=adapt.AdaPT.compact(), rounding="nearest").controller
    for weights, shown, precision in zip(before, model.parameters(), controller.precisions.values(), strict=False):
        assert precision.word_length < 8
        assert torch.linalg.vector_norm(adapt.quantize(weights, precision) - weights) < weights.norm() / 3
        assert shown.count_nonzero() > 0


def test_first_weights_that_are_not_finite_are_refused():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        adapt.ASGD(model, lr=0.1, policy=adapt.AdaPT.compact())
