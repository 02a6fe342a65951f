import contextlib
import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt.numerics import BlockFloat, Precision
from adapt.switching.allocation import (
    HYSTERESIS,
    SAMPLE,
    WORDS,
    allocate,
    best_ranges,
    errors_by_word,
    sample,
    squared_error,
)
from adapt.switching.policy import Observation
from adapt.switching.rounding_costs import explained, largest_cost, next_bits, rounding_cost
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


@pytest.mark.parametrize("cost", [rounding_cost, largest_cost])
def test_cost_needs_a_gradient(cost):
    with pytest.raises(ValueError, match="gradients must be at least 1, got 0"):
        cost(torch.zeros(3), 0, torch.zeros(3), TINY)


@given(VALUES, st.integers(2, 10), st.integers(-6, 12), PENALTIES, PENALTIES, st.data())
def test_no_cost_is_above_the_largest_which_equals_the_literal_product(
    weights, word_length, fraction_length, l1, l2, data
):
    numbers = st.lists(st.floats(-10, 10, width=32), min_size=len(weights), max_size=len(weights))
    gradients = torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=4)))
    window = gradients.sum(0), len(gradients), torch.tensor(weights), Precision(word_length, fraction_length)
    largest = largest_cost(*window, l1=l1, l2=l2)
    literal = reference.largest_cost(list(gradients.numpy()), weights, word_length, fraction_length, l1, l2)
    pulls = gradients.abs().sum(0).double() + l1 + l2 * torch.tensor(weights).abs().double()
    errors = adapt.quantize(window[2], window[3]).double() - window[2].double()
    assert largest == pytest.approx(literal, rel=1e-4, abs=1e-5 * float(pulls.norm() * errors.norm()) + 1e-30)
    cost = rounding_cost(*window, l1=l1, l2=l2)
    assert abs(cost) <= largest * (1 + 1e-5) + 1e-6 * float(pulls @ errors.abs()) + 1e-30


SMALL = st.integers(-9, 9)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.lists(SMALL, min_size=n, max_size=n)] * 2))))
def test_explained_is_the_literal_share_and_knows_no_units(layers):
    def found(scale=1.0):
        cost = sum(scale * float(np.dot(g, e)) for g, e in layers)
        return explained(cost, sum(scale * float(np.linalg.norm(g) * np.linalg.norm(e)) for g, e in layers))

    assert found() == pytest.approx(reference.explained(layers), abs=1e-12) == pytest.approx(found(1e-20), abs=1e-12)
    assert -1 <= found() <= 1


def test_errors_that_gradients_point_along_explain_all_and_no_error_explains_nothing():
    assert explained(6.0, 6.0) == 1
    assert explained(-3.0, 6.0) == -0.25
    assert explained(0.0, 0.0) == 0
    with pytest.raises(ValueError, match="largest must not be negative, got -1"):
        explained(0.0, -1.0)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(1.01, 5), (1.0, 4), (0.125, 4), (0.12, 3), (0.0, 3), (-0.12, 3), (-0.13, 4), (math.nan, 4), (math.inf, 5)],
)
def test_bits_follow_the_cost_one_at_a_time(cost, expected):
    assert next_bits(4.0, cost, allowed=1.0) == expected == reference.next_bits(4.0, cost, 1.0)


@given(VALUES, st.integers(2, 8), st.integers(-6, 12))
def test_squared_error_equals_the_literal_sum(weights, word_length, fraction_length):
    error = squared_error(torch.tensor(weights), Precision(word_length, fraction_length))
    assert error == pytest.approx(float(reference.squared_error(weights, word_length, fraction_length)), rel=1e-5)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=20), st.integers(-8, 8))
def test_ranges_equal_the_literal_search(eighths, exponent):
    """Weights of few digits, so that float32 and exact arithmetic agree which of two errors is smaller."""
    weights = torch.tensor(eighths) * 2.0 ** (exponent - 3)
    shortest = -200
    for precision, error in best_ranges(weights, range(2, 8)):
        fraction_length, literal = reference.best_range(weights, precision.word_length, shortest)
        assert precision.fraction_length == fraction_length
        assert error == pytest.approx(float(literal), rel=1e-12)
        shortest = fraction_length


def test_a_short_word_leaves_out_the_tails():
    torch.manual_seed(0)
    weights = torch.randn(10_000)
    (three, error), *_, (ten, _) = best_ranges(weights, range(3, 11))
    assert three.maximum < weights.abs().max() / 1.9
    assert error < squared_error(weights, BlockFloat(3).precision(*map(float, torch.aminmax(weights)))) / 2
    assert ten.maximum > 0.9 * weights.abs().max()


@pytest.mark.parametrize("weights", [torch.zeros(0), torch.zeros(4)])
def test_nothing_loses_nothing(weights):
    assert [error for _, error in best_ranges(weights)] == [0.0] * len(WORDS)


def test_a_sample_goes_through_rows_and_columns_of_a_large_layer():
    weights = torch.arange(2.0**20).view(1024, 1024)
    kept = sample(weights)
    assert SAMPLE / 2 < len(kept) <= SAMPLE
    assert len((kept % 1024).unique()) == len((kept // 1024).unique()) == 1024
    assert sample(torch.ones(2, 3)).tolist() == [1.0] * 6


COSTS = st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=4)


@given(COSTS, st.data())
def test_allocation_equals_the_literal_one_and_keeps_to_the_budget(costs, data):
    numel = data.draw(st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs)))
    budget = data.draw(st.floats(2, 5.5)) * sum(numel)
    prices = np.multiply.outer(numel, [2, 3, 4, 5])
    chosen = allocate(np.array(costs, np.float64), prices, budget)
    assert chosen.tolist() == reference.allocate(costs, prices.tolist(), budget)
    assert prices[np.arange(len(costs)), chosen].sum() <= budget


@given(COSTS, st.data())
def test_allocation_of_any_prices_equals_the_literal_one(costs, data):
    """Entropies of finer steps may fall a little, too."""
    numbers = st.lists(st.integers(0, 50), min_size=4, max_size=4)
    prices = data.draw(st.lists(numbers, min_size=len(costs), max_size=len(costs)))
    budget = data.draw(st.integers(0, 50 * len(costs)))
    chosen = allocate(np.array(costs, np.float64), np.array(prices), budget)
    assert chosen.tolist() == reference.allocate(costs, prices, budget)


@given(st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 12))
def test_no_other_allocation_of_as_many_bits_costs_less(drops, budget):
    """Layers of one size whose costs fall less with every bit: the case in which the order decides all."""
    costs = np.array([[sum(sorted(drop)[: 3 - index]) for index in range(4)] for drop in drops], np.float64)
    chosen = allocate(costs, np.tile(np.arange(4), (len(costs), 1)), budget)
    layers = np.arange(len(costs))
    others = [np.array(words) for words in itertools.product(range(4), repeat=len(costs)) if sum(words) <= budget]
    assert costs[layers, chosen].sum() == min(costs[layers, words].sum() for words in others)


def test_a_bit_of_a_small_layer_is_cheap():
    costs = np.array([[64.0, 16, 4, 1, 0.25]] * 2)
    words = allocate(costs, np.multiply.outer([100, 10_000], np.arange(5)), 1.5 * 10_100)
    assert words.tolist() == [4, 1]


@pytest.mark.parametrize("bits", [3, 4, 5.5])
def test_a_budget_is_met_as_nearly_as_the_smallest_layer_allows(bits):
    _, controller = trained(adapt.AdaPT.compact(bits=bits))
    trace = controller.trace
    numel = np.array([master.numel() for master in controller.masters.values()])
    means = trace.word_length @ numel / numel.sum()
    assert (means <= bits).all()
    assert means[-1] > bits - numel.min() / numel.sum()


def test_formats_that_are_about_as_good_stay():
    weights = torch.linspace(-1, 1, 101)
    (best, error), (longer, _) = best_ranges(weights, [4, 5])
    other = Precision(4, best.fraction_length - 1)
    assert errors_by_word(weights, best)[2] == (best, error / HYSTERESIS)
    assert errors_by_word(weights, other)[2] == (best, error), "half the step is not about as good"
    assert errors_by_word(weights, Precision(20, 9)) == best_ranges(weights)
    assert errors_by_word(weights, best)[3][0] == longer


def test_formats_of_weights_and_gradients_that_stay_come_to_rest():
    policy, generator = adapt.AdaPT.compact(bits=3), torch.Generator().manual_seed(0)
    weights = [scale * torch.randn(size, generator=generator) for scale, size in ((0.1, 90), (1.0, 900), (0.3, 4000))]
    state = policy.start(weights)
    formats = []
    for _ in range(300):
        norms = 1 + 0.2 * torch.rand(3, generator=generator).numpy().astype(np.float64)
        state = advanced(policy, state, weights, norms=norms)
        formats.append(state.formats)
    assert formats[1] != formats[0]
    assert len(set(formats[1:])) == 1


def advanced(policy, state, weights, *, norms=None, seen=None, saturated=None):
    layers = len(state.formats)
    observation = Observation(
        loss=None,
        norms=np.ones(layers) if norms is None else norms,
        norms_of_sums=np.ones(layers),
        seen=np.ones(layers, bool) if seen is None else seen,
        sound=np.ones(layers, bool),
        weights=weights,
        sums=[torch.zeros_like(weight) for weight in weights],
        l1=np.zeros(layers),
    )
    if saturated is not None:
        object.__setattr__(observation, "saturated", np.array(saturated))
    return policy.advance(state, observation)


def test_layers_that_seldom_get_a_gradient_trade_bits_with_the_others():
    """As the experts of a mixture: their windows fill at other times."""
    policy = adapt.AdaPT.compact(bits=4, lookback=(2, 4))
    weights = [torch.linspace(-1, 1, 50)] * 2
    state = policy.start(weights)
    for step in range(30):
        seen = np.array([True, step % 3 == 0])
        state = advanced(policy, state, weights, norms=np.array([100.0, 0.1]), seen=seen)
    assert [precision.word_length for precision in state.formats] == [6, 2]
    assert state.gradients[1] <= state.gradients[0]


def test_a_layer_without_a_gradient_keeps_its_format():
    policy = adapt.AdaPT.compact(bits=4)
    weights = [torch.linspace(-1, 1, 50)] * 3
    state = policy.start(weights)
    for _ in range(30):
        state = advanced(policy, state, weights, norms=np.array([1, 9, math.nan]), seen=np.array([True, True, False]))
    assert [precision.word_length for precision in state.formats] == [3, 5, 4]


def test_a_layer_that_outgrows_its_range_gets_another_within_eight_steps():
    policy = adapt.AdaPT.compact(bits=4, lookback=(100, 100))
    weights = [torch.linspace(-1, 1, 50)] * 2
    state = policy.start(weights)
    before, grown = state.formats, [weights[0], 8 * weights[1]]
    for step in range(1, 9):
        assert policy.patience(state) == 8 - step
        state = advanced(policy, state, grown, saturated=[0.0, 0.6])
    assert state.formats[0] == before[0]
    assert state.formats[1] == Precision(4, before[1].fraction_length - 3)
    assert state.gradients.tolist() == [8, 0]


def test_compact_is_adapt_with_other_hyperparameters():
    policy = adapt.AdaPT.compact()
    assert isinstance(policy, adapt.AdaPT)
    changes = {"initial": None, "buffer_bits": 0, "lookback": (2, 128), "normalize_gradients": False, "push_up": "loss"}
    assert policy == dataclasses.replace(adapt.AdaPT(), **changes)
    assert adapt.AdaPT.compact(bits=4, lookback=(1, 9)) == dataclasses.replace(policy, bits=4, lookback=(1, 9))


@pytest.mark.parametrize("bits", [1, 17, math.nan, "4", True])
def test_a_senseless_budget_is_refused(bits):
    with pytest.raises(ValueError, match="bits must be a number from 2 to 16 or None"):
        adapt.AdaPT.compact(bits=bits)


@pytest.mark.parametrize("tolerance", [0, -1.0, math.inf, math.nan, "much"])
def test_a_senseless_loss_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match="loss_tolerance must be a share of the loss above 0"):
        adapt.AdaPT(push_up="loss", loss_tolerance=tolerance)


def blobs(generator):
    """Two classes that a boundary of several digits tells apart: coarse weights cannot draw it."""
    inputs = torch.randn(64, 8, generator=generator)
    rule = torch.tensor([1.0, -0.31, 0.17, 0.083, -0.62, 0.41, -0.23, 0.11])
    return inputs, (inputs @ rule > 0.05).long()


@functools.cache
def trained(policy, *, shows_loss=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = adapt.ASGD(model, lr=0.1, momentum=0.9, policy=policy, rounding="nearest")
    generator = torch.Generator().manual_seed(1)
    for _ in range(600):
        inputs, labels = blobs(generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        if shows_loss:
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
    rescued, controller = trained(adapt.AdaPT.compact(initial=too_low))
    assert rescued < stuck / 2
    words = controller.trace.word_length
    assert (words[0] == 2).all()
    assert words[-1].max() > 3


def test_compact_gives_bits_back_when_the_loss_does_not_need_them():
    _, controller = trained(adapt.AdaPT.compact(initial=Precision(16, 12)))
    words = controller.trace.word_length
    assert (words[-1] < words[0]).all()


@pytest.mark.filterwarnings("ignore:the controller never saw the loss")
@pytest.mark.parametrize("initial", [Precision(2, 1), Precision(16, 12)])
def test_without_losses_the_gradients_bring_bits_to_about_where_the_loss_would(initial):
    policy = adapt.AdaPT.compact(initial=initial)
    shown, by_loss = trained(policy)
    alone, by_gradients = trained(policy, shows_loss=False)
    assert alone < shown + 0.02
    assert abs(mean_bits(by_gradients) - mean_bits(by_loss)) <= 3
    assert (by_gradients.trace.word_length[0] == initial.word_length).all()


def mean_bits(controller):
    numel = np.array([master.numel() for master in controller.masters.values()])
    return controller.trace.word_length[-1] @ numel / numel.sum()


def test_that_the_loss_was_never_seen_is_said_once():
    model = nn.Linear(8, 2)
    optimizer = adapt.ASGD(model, lr=0.1, policy=adapt.AdaPT.compact())
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        inputs, labels = blobs(generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        told = pytest.warns(UserWarning, match=r"never saw the loss.*judges rounding by the gradients alone")
        with told if step == 0 else contextlib.nullcontext():
            optimizer.step()


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
        assert precision.word_length == 8
        assert torch.linalg.vector_norm(adapt.quantize(weights, precision) - weights) < weights.norm() / 3
        assert shown.count_nonzero() > 0


def test_first_weights_that_are_not_finite_are_refused():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        adapt.ASGD(model, lr=0.1, policy=adapt.AdaPT.compact())
