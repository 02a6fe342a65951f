"""Widths by hand beside widths that are learned, and beside LSQ's."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.learned import Budget, attach
from adapt.learned.format_table import FormatTable
from tests.learned import networks
from tests.learned.networks import PHASES, build, learning, train

PINS = {"first": 8, "head": (5, 6), "up.weight": 3}
SITES = {
    "first.weight": (8, 8),
    "first.bias": (8, 8),
    "first.input": (8, 8),
    "head.weight": (5, 6),
    "head.bias": (5, 6),
}
SITES |= {"head.input": (5, 6), "up.weight": (3, 3)}


def lengths(learner, name):
    """The word lengths of a tensor's channels."""
    return np.atleast_1d(learner.formats[name].word_length)


def check(learner, sites):
    for name, (low, high) in sites.items():
        found = lengths(learner, name)
        assert low <= found.min() <= found.max() <= high, (name, found)


@pytest.mark.parametrize(("bits", "floor"), [(6.0, 2), (5.5, 1)])
def test_pinned_formats_stay_and_the_budgets_count_them(bits, floor):
    _, _, learner = run = learning(bits=bits, floor=floor, layer_bits=PINS)
    check(learner, SITES)
    model, optimizer, _ = run
    for step in range(PHASES.total):
        train(model, optimizer, 1, first=step)
        check(learner, SITES)
    assert learner.size.weight_bits <= bits * (1 + 1e-9)
    assert learner.size.activation_bits <= bits * (1 + 1e-9)
    assert not np.array_equal(
        learner.steps["first.weight"], learning(bits=bits, layer_bits=PINS)[2].steps["first.weight"]
    )


widths = st.integers(2, 16)


@settings(max_examples=max(5, settings.default.max_examples // 5))
@given(first=st.tuples(widths, widths).map(sorted), scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_no_width_ever_leaves_its_bounds(first, scale):
    model, optimizer = build()
    with torch.no_grad():
        model.first.weight.mul_(scale)
    options = {"weight_budget": Budget(bits=17), "phases": PHASES, "layer_bits": {"first": first}}
    learner = attach(optimizer, model, update_every=2, **options)
    for step in range(PHASES.total):
        train(model, optimizer, 1, first=step)
        check(learner, {"first.weight": first, "first.bias": first})
    assert torch.isfinite(model.first.weight).all()


@given(data=st.data(), floor=st.sampled_from([1, 2]), seed=st.integers(0, 100))
def test_any_step_and_range_are_moved_within_the_bounds(data, floor, seed):
    count, weights = 12, 7
    pairs = data.draw(st.lists(st.tuples(st.integers(floor, 16), st.integers(floor, 16)).map(sorted), min_size=count))
    lowest, highest = np.array(pairs[:count], np.int64).T
    signed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    signed[:weights] = True
    names = [f"t{i}" for i in range(count)]
    sizes = np.full(count, 5, np.int64)
    table = FormatTable(names, [1] * count, sizes, signed, weights=weights, floor=floor, device=torch.device("cpu"))
    table.bound(lowest, highest)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        step, maximum = torch.exp2(16 * torch.rand(2, count, generator=generator) - 12)
        table.set(step, maximum)
        assert ((lowest <= table.bits) & (table.bits <= highest)).all()
        before = table.step.clone(), table.maximum.clone()
        table.set(*before)
        assert torch.equal(table.step, before[0])
        assert torch.equal(table.maximum, before[1])
        table.shift(torch.randn(count, generator=generator))
        assert ((lowest <= table.bits) & (table.bits <= highest)).all()


def test_bounds_that_hold_anyway_change_nothing():
    runs = [learning(), learning(layer_bits={"up": (2, 16)})]
    for model, optimizer, _ in runs:
        train(model, optimizer, PHASES.total)
    (_, _, free), (_, _, bounded) = runs
    assert free.formats == bounded.formats
    for name, master in free.masters.items():
        assert torch.equal(master, bounded.masters[name])


def test_lsq_has_words_of_several_lengths():
    model, optimizer, learner = networks.given(3, activation_bits=4, layer_bits={"first": 8, "head": (1, 2), "up": 1})
    sites = {"first.weight": (8, 8), "first.input": (8, 8), "head.weight": (2, 2), "head.input": (2, 2)}
    sites |= {"up.weight": (1, 1), "up.input": (1, 1), "grouped.weight": (3, 3), "grouped.input": (4, 4)}
    check(learner, sites)
    train(model, optimizer, 8)
    check(learner, sites)
    with learner.evaluation_weights():
        for name, parameter in model.named_parameters():
            if name in learner.formats:
                assert torch.equal(learner.formats[name].quantize(parameter), parameter)


def test_lsq_of_a_pinned_layer_is_lsq_of_these_bits():
    mixed, whole = networks.given(3, layer_bits={"first": 8}), networks.given(8)
    assert mixed[2].formats["first.weight"] == whole[2].formats["first.weight"]
    assert mixed[2].formats["head.weight"] == networks.given(3)[2].formats["head.weight"]


@pytest.mark.covering(1)
@pytest.mark.parametrize("again", [PINS, None])
@pytest.mark.parametrize(
    "make",
    [lambda **options: learning(bits=6, **options), lambda **options: networks.given(4, activation_bits=4, **options)],
    ids=["learned widths", "LSQ"],
)
def test_a_resumed_run_keeps_its_bounds_bit_for_bit(make, again):
    model, optimizer, learner = make(layer_bits=PINS)
    train(model, optimizer, 15)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    train(model, optimizer, 25, first=15)
    resumed, its_optimizer, its_learner = make(layer_bits=again)
    resumed.load_state_dict(weights)
    its_optimizer.load_state_dict(state)
    train(resumed, its_optimizer, 25, first=15)
    assert its_learner.formats == learner.formats
    for name, master in learner.masters.items():
        assert torch.equal(master, its_learner.masters[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_bits": {"cnov": 8}}, r"layer_bits\['cnov'\] matches no layer: the layers are first.weight"),
        ({"layer_bits": {"first": 17}}, "must lie between 2 and 16 bits"),
        ({"layer_bits": {"first": 1}}, "must lie between 2 and 16 bits"),
        ({"layer_bits": {"*": 5}}, "weight_budget of 4 bits on average cannot be met: 5 bits, the fewest of a format"),
        ({"layer_bits": {"grouped": (9, 16), "up": 8}}, "cannot be met: 2 to 9 bits.* or less in layer_bits"),
        ({"layer_bits": {"*.input": 5}}, "activation_budget of 4 bits on average cannot be met"),
        ({"layer_bits": {"first.input": 8}, "activation_budget": None}, r"'first.input'\] matches no layer"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learning(**options)
