"""Steps for weights that an entropy coder will pack."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.numerics import Precision
from adapt.switching.allocation import allocate, squared_error
from adapt.switching.entropy import code_length, errors_by_step, first_step, steady
from tests.references import adapt_equations as reference
from tests.switching.test_compact import advanced, trained

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)


@given(VALUES, st.integers(2, 10), st.integers(-6, 12))
def test_code_length_equals_the_literal_one(weights, word_length, fraction_length):
    found = code_length(torch.tensor(weights), Precision(word_length, fraction_length))
    assert found == pytest.approx(reference.code_length(weights, word_length, fraction_length), abs=1e-12)


def test_an_empty_layer_takes_nothing():
    assert code_length(torch.zeros(0), Precision(4, 1)) == 0
    assert [error for _, error, _ in errors_by_step(torch.zeros(0))] == [0.0] * 15


@given(VALUES)
def test_no_step_loses_more_than_half_of_the_weights_power(weights):
    values = torch.tensor(weights)
    power = float(values.double().square().mean())
    errors = [error for _, error, _ in errors_by_step(values)]
    assert max(errors) <= power / 2 or len(errors) == 1


def test_a_layer_without_gradients_for_a_while_is_not_rounded_to_zero():
    policy = adapt.AdaPT.compact(bits=2, count="entropy", lookback=(4, 8))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4000, generator=generator) for _ in range(2)]
    state = policy.start(weights)
    for _ in range(20):
        state = advanced(policy, state, weights, norms=np.array([1.0, 1e-9]))
    for layer, form in zip(weights, state.formats, strict=True):
        assert squared_error(layer, form) <= 0.5 * float(layer.square().mean())


@given(VALUES)
def test_no_format_clips_by_more_than_half_a_step(weights):
    values = torch.tensor(weights)
    for form, error, length in errors_by_step(values):
        assert (values - adapt.quantize(values, form)).abs().max() <= form.step * 0.5001
        assert error == squared_error(values, form)
        assert length == code_length(values, form)


def test_fine_steps_are_inversely_proportional_to_gradients_whatever_the_spread_of_the_weights():
    """The high-resolution rule ‖G_l‖²·d_l²/n_l = λ, to within the factor of 2 that powers of two leave each way."""
    generator = torch.Generator().manual_seed(0)
    sizes, spreads, roots = [20_000] * 4, [0.02, 3.0, 0.3, 0.3], np.array([8.0, 1.0, 0.1, 1.0])
    tables = [errors_by_step(s * torch.randn(n, generator=generator)) for n, s in zip(sizes, spreads, strict=True)]
    powers = np.square(roots) * sizes
    costs = np.array([[power * row[1] for row in table] for power, table in zip(powers, tables, strict=True)])
    prices = np.array([[n * row[2] for row in table] for n, table in zip(sizes, tables, strict=True)])
    chosen = allocate(costs, prices, 4.5 * sum(sizes))
    steps = np.array([table[index][0].step for table, index in zip(tables, chosen, strict=True)])
    levels = powers * np.square(steps) / sizes
    assert levels.max() / levels.min() <= 16
    assert 4.25 * sum(sizes) < prices[np.arange(4), chosen].sum() <= 4.5 * sum(sizes)


def test_the_table_of_frequencies_keeps_a_small_layer_from_steps_that_only_number_its_weights():
    """Without it the entropy of 50 weights is never above log₂ 50 bits, however fine their steps."""
    lengths = [length for _, _, length in errors_by_step(torch.randn(50, generator=torch.Generator().manual_seed(0)))]
    assert lengths[-1] > math.log2(50) + 2


@pytest.mark.parametrize("bits", [1.5, 3, 4.5])
def test_a_budget_of_entropy_is_met_from_below(bits):
    _, controller = trained(adapt.AdaPT.compact(bits=bits, count="entropy"))
    masters, formats = controller.masters, controller.precisions
    spent = sum(master.numel() * code_length(master, formats[name]) for name, master in masters.items())
    numel = sum(master.numel() for master in masters.values())
    assert 0.7 * bits <= spent / numel <= 1.02 * bits, "160 weights leave little to choose from"
    assert all((master.abs() <= formats[name].maximum + formats[name].step).all() for name, master in masters.items())


@given(data=st.data())
def test_formats_stay_only_within_the_budget_and_where_others_save_little(data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    draw = np.random.default_rng(data.draw(st.integers(0, 999)))
    costs, prices = np.sort(draw.random(shape))[:, ::-1], np.sort(draw.random(shape))
    budget = float(prices.mean(1).sum())
    chosen, now = allocate(costs, prices, budget), draw.integers(-1, shape[1], shape[0])
    found, rows = steady(costs, prices, now, chosen, budget), range(shape[0])
    stays = (
        min(now) >= 0
        and 0.98 * budget <= sum(prices[i, now[i]] for i in rows) <= 1.02 * budget
        and sum(costs[i, now[i]] for i in rows) <= 1.5 * sum(costs[i, chosen[i]] for i in rows)
    )
    assert found.tolist() == (now if stays else chosen).tolist()


def test_noise_moves_no_step_once_the_budget_is_met_but_another_share_does():
    policy = adapt.AdaPT.compact(bits=4, count="entropy", lookback=(4, 8))
    generator, draw = torch.Generator().manual_seed(0), np.random.default_rng(0)
    weights = [torch.randn(4000, generator=generator) * spread for spread in (0.1, 0.3, 1.0)]
    state, found = policy.start(weights), []
    for step in range(120):
        shares = np.array([1.0, 5.0, 2.0]) if step < 80 else np.array([30.0, 0.2, 2.0])
        state = advanced(policy, state, weights, norms=shares * draw.uniform(0.8, 1.25, 3))
        found.append(state.formats)
    assert len(set(found[16:80])) == 1
    assert found[79] != found[-1]


def test_layers_begin_with_a_step_that_the_budget_affords():
    weights = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    form = first_step(weights, 3)
    assert code_length(weights, form) <= 3 < code_length(weights, first_step(weights, 4.1))
    policy = adapt.AdaPT.compact(bits=3, count="entropy")
    assert policy.start([weights]).formats == (form,)


def test_a_layer_that_has_diverged_does_not_keep_the_others_from_theirs():
    policy = adapt.AdaPT.compact(bits=3, count="entropy")
    weights = [torch.linspace(-1, 1, 500), torch.linspace(-1, 1, 500)]
    state = policy.start(weights)
    weights[1][3] = math.nan
    seen = np.array([True, False])
    for _ in range(9):
        state = advanced(policy, state, weights, seen=seen)
    lengths = [code_length(layer, form) for layer, form in zip(weights, state.formats, strict=True)]
    assert 2.5 <= np.mean(lengths) <= 3


def test_entropy_needs_a_budget():
    with pytest.raises(ValueError, match='count="entropy" needs a budget, such as bits=3'):
        adapt.AdaPT.compact(count="entropy")
    with pytest.raises(ValueError, match='count must be "words" or "entropy", got \'bytes\''):
        adapt.AdaPT.compact(bits=3, count="bytes")
    with pytest.raises(ValueError, match="bits must be a number from 0 to 16 or None, got 0"):
        adapt.AdaPT.compact(bits=0, count="entropy")
