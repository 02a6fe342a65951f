"""Widths that are settled within the budgets, whatever the size of weights and inputs, and stay as they are."""

import numpy as np
import pytest
import torch

from adapt.layers.choice import is_matrix
from adapt.learned import Budget, attach
from adapt.learned.options import LearnedWidths
from adapt.learned.projection import fit_to_budgets
from adapt.learned.run import LearnedRun
from tests.learned.networks import PHASES, Reader, build, learning, pictures, train

SETTLING = PHASES.pretraining + PHASES.learned


def widths(learner):
    """The word length of every format."""
    return np.concatenate([np.atleast_1d(form.word_length) for form in learner.formats.values()])


def one_bit_run(bits):
    """A run whose weights alone are quantised, on average with so many bits, and may have a single one."""
    model, _ = build()
    plan = LearnedWidths(weight_budget=Budget(bits=bits), phases=PHASES, floor=1)
    layers = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    return LearnedRun(plan, is_matrix, layers, model)


def large(weights, inputs):
    """The network with larger weights, and larger pictures for it."""
    model, optimizer = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(weights)

    def data(step):
        x, targets = pictures(step)
        return x * inputs, targets

    return model, optimizer, data


@pytest.mark.covering(1)
@pytest.mark.parametrize(("floor", "bits"), [(2, 2.0), (2, 4.0), (2, 12.0), (1, 1.2), (1, 2.0)])
@pytest.mark.parametrize(("weights", "inputs"), [(1, 1), (10, 1), (1, 100), (10, 100)])
def test_sizes_are_within_the_budgets_and_stay(weights, inputs, floor, bits):
    model, optimizer, data = large(weights, inputs)
    budget = Budget(bits=bits)
    options = {"weight_budget": budget, "activation_budget": budget, "phases": PHASES, "floor": floor}
    learner = attach(optimizer, model, [data(900)[0]], update_every=2, **options)
    train(model, optimizer, SETTLING, data=data)
    settled, steps = widths(learner), learner.steps
    assert max(learner.size.weight_bits, learner.size.activation_bits) <= bits * (1 + 1e-9)
    for at in range(SETTLING, PHASES.total):
        train(model, optimizer, 1, first=at, data=data)
        assert np.array_equal(widths(learner), settled)
    assert any(not np.array_equal(step, learner.steps[name]) for name, step in steps.items())


def test_a_budget_that_leaves_no_choice_is_named():
    with pytest.warns(UserWarning, match="budget leaves no bits to learn: .* Allow more, or pass floor=1") as warned:
        learning(bits=2)
    assert [str(w.message).split()[0] for w in warned] == ["weight_budget", "activation_budget"]
    with pytest.warns(UserWarning, match="Allow more$"):
        learning(bits=1, floor=1)


@pytest.mark.filterwarnings("error:.*leaves no bits to learn")
@pytest.mark.parametrize("options", [{"bits": 2, "floor": 1}, {"bits": 2.5}, {"bits": 4, "layer_bits": {"*": 4}}])
def test_a_budget_that_leaves_a_choice_or_is_met_by_hand_is_not(options):
    learning(**options)


@pytest.mark.parametrize("weights", [1, 10])
@pytest.mark.parametrize(("floor", "bits"), [(2, 2.0), (1, 1.5)])
def test_embeddings_are_within_the_budget(floor, bits, weights):
    torch.manual_seed(0)
    model = Reader()
    with torch.no_grad():
        model.words.weight.mul_(weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    options = {"weight_budget": Budget(bits=bits), "phases": PHASES, "floor": floor}
    learner = attach(optimizer, model, update_every=2, **options)

    def words(step):
        generator = torch.Generator().manual_seed(step)
        return torch.randint(11, (4, 5), generator=generator), torch.randint(3, (4,), generator=generator)

    train(model, optimizer, SETTLING, data=words)
    settled = widths(learner)
    assert learner.size.weight_bits <= bits * (1 + 1e-9)
    train(model, optimizer, PHASES.total - SETTLING, first=SETTLING, data=words)
    assert np.array_equal(widths(learner), settled)


@pytest.mark.parametrize(("bits", "expected"), [(8, 10), (14, 16), (40, 16)])
def test_all_begin_with_the_same_width(bits, expected):
    _, _, learner = learning(bits=bits)
    assert (widths(learner) == expected).all()


def test_one_bit_settles_at_the_mean_magnitude_of_its_channel():
    run = one_bit_run(1.0)
    assert (run.table.bits == 3).all()
    fit_to_budgets(run.table, run.layers, run.energy, run.sizes.loads, run.sizes.targets)
    assert (run.table.bits == 1).all()
    for i, name in enumerate(run.layers.names):
        expected = run.layers.rows(i).abs().mean(1)
        torch.testing.assert_close(run.table.maximum[run.table.places[name]], expected)


def test_a_channel_that_grows_from_one_bit_gets_a_range_that_reaches_further():
    run = one_bit_run(2.0)
    means = torch.cat([run.layers.rows(i).abs().mean(1) for i in range(len(run.layers.names))])
    ones = np.ones(len(means), np.int64)
    run.table.set_widths(ones, ones > 0, means)
    fit_to_budgets(run.table, run.layers, run.energy, run.sizes.loads, run.sizes.targets)
    grown = torch.from_numpy(run.table.bits == 2)
    assert grown.sum() > 10
    assert (run.table.maximum / means)[grown].median() > 1.2
