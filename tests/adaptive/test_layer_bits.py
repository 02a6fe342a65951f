"""Bits by hand beside bits by policy: no layer leaves its bounds, whatever decides, and a resumed run keeps them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt.engine.persistence import to_bytes
from tests.training import CLIMBING, RESTLESS, assembled, batch, net, through_a_file, train

COMPACT = adapt.AdaPT.compact(lookback=(2, 4))
POLICIES = {
    "paper": RESTLESS,
    "algorithm 4": replace(RESTLESS, push_up="diversity"),
    "compact": COMPACT,
    "compact under a budget": replace(COMPACT, bits=12),
    "compact for files": replace(COMPACT, bits=3, count="entropy"),
    "MuPPET": CLIMBING,
    "cyclic": adapt.CyclicPrecision(20, bits=(3, 12), cycles=4),
    "fixed": adapt.Fixed(adapt.Precision(8, 4)),
}
PINS = {"0": 6, "2.*": (3, 5)}
words = st.integers(2, 12)
pairs = st.tuples(words, words).map(lambda pair: (min(pair), max(pair)))


@pytest.mark.covering(1)
@settings(max_examples=6, deadline=None)
@given(first=pairs, second=pairs, data=st.data())
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_layer_ever_leaves_its_bounds(policy, rounding, first, second, data):
    biases, quantized = data.draw(st.booleans()), data.draw(st.booleans())
    chosen = replace(POLICIES[policy], quantize_gradients=quantized) if policy != "cyclic" else POLICIES[policy]
    options = {"rounding": rounding, "quantize_biases": biases, "layer_bits": {"0": first, "2.weight": second}}
    model, optimizer, controller = assembled(policy=chosen, **options)
    train(model, optimizer, 20, controller=controller)
    lengths = controller.trace.word_length
    for column, (low, high) in zip(lengths.T, (first, second), strict=True):
        assert low <= column.min() <= column.max() <= high
    for name, (low, high) in (("0.weight", first), ("2.weight", second)):
        assert low <= controller.formats[name].word_length <= high
        assert low <= controller.precisions[name].word_length <= high
        with controller.evaluation_weights():
            weight = dict(model.named_parameters())[name]
            assert torch.equal(controller.formats[name].quantize(weight), weight)
    assert torch.isfinite(torch.cat([p.detach().flatten() for p in model.parameters()])).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_bounds_that_hold_anyway_change_nothing(policy):
    def run(**options):
        model, optimizer, controller = assembled(policy=POLICIES[policy], **options)
        train(model, optimizer, 20, controller=controller)
        return controller

    free, bounded = run(), run(layer_bits={"*": (2, 32)})
    for name, master in free.masters.items():
        assert torch.equal(master, bounded.masters[name])
    assert np.array_equal(free.trace.word_length, bounded.trace.word_length)


def test_a_short_word_covers_its_weights():
    model, optimizer, controller = assembled(policy=adapt.Fixed(adapt.Precision(8, 4)), layer_bits={"0": 4})
    train(model, optimizer, 3, controller=controller)
    form = controller.formats["0.weight"]
    largest = float(controller.masters["0.weight"].abs().max())
    assert form.step < largest <= form.maximum + 2 * form.step
    assert controller.precisions["2.weight"] == adapt.Precision(8, 4)


def test_compact_counts_what_is_pinned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    model, optimizer, controller = assembled(model, replace(COMPACT, bits=4), layer_bits={"0": 8}, rounding="nearest")
    train(model, optimizer, 20, controller=controller)
    lengths, sizes = controller.trace.word_length[-1], controller.trace.numel
    assert lengths[0] == 8
    assert 3.7 < lengths @ sizes / sizes.sum() <= 4
    with pytest.raises(ValueError, match="layer_bits ask for at least"):
        assembled(net(), replace(COMPACT, bits=4), layer_bits={"*": 5})


@pytest.mark.covering(1)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("again", [PINS, None])
def test_a_resumed_run_keeps_its_bounds_bit_for_bit(policy, again):
    model, optimizer, controller = assembled(policy=POLICIES[policy], layer_bits=PINS)
    train(model, optimizer, 9, controller=controller)
    state, weights = (
        through_a_file(optimizer.state_dict()),
        {name: value.clone() for name, value in model.state_dict().items()},
    )
    train(model, optimizer, 9, first=9, controller=controller)

    resumed, its_optimizer, its_controller = assembled(net(5), POLICIES[policy], layer_bits=again)
    resumed.load_state_dict(weights)
    its_optimizer.load_state_dict(state)
    train(resumed, its_optimizer, 9, first=9, controller=its_controller)
    assert its_controller.precisions == controller.precisions
    for name, master in controller.masters.items():
        assert torch.equal(master, its_controller.masters[name])
    assert np.array_equal(its_controller.trace.word_length, controller.trace.word_length)


def test_a_resumed_run_may_have_other_bounds():
    model, optimizer, controller = assembled(policy=RESTLESS, layer_bits=PINS)
    train(model, optimizer, 9, controller=controller)
    for given_bits, bits in (({"0": 9}, 9), ({}, controller.state_dict()["state"]["formats"][0][0])):
        _, its_optimizer, its_controller = assembled(policy=RESTLESS, layer_bits=given_bits)
        its_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        assert its_controller.formats["0.weight"].word_length == bits


def test_bounds_in_a_damaged_state_are_refused():
    model, optimizer, controller = assembled(policy=RESTLESS, layer_bits=PINS)
    train(model, optimizer, 2, controller=controller)
    for damaged in (b"", 3, to_bytes({"0": 99}), to_bytes([1])):
        state = through_a_file(optimizer.state_dict())
        state["adapt"]["layer_bits"] = damaged
        _, its_optimizer, _ = assembled(policy=RESTLESS)
        with pytest.raises(ValueError, match=r"precision state|layer_bits"):
            its_optimizer.load_state_dict(state)


def test_a_layer_that_joins_has_the_bounds_of_its_pattern():
    model = net()
    model[2].requires_grad_(False)
    model, optimizer, controller = assembled(model, COMPACT, layer_bits=PINS)
    train(model, optimizer, 3, controller=controller)
    model[2].requires_grad_(True)
    train(model, optimizer, 9, first=3, controller=controller)
    assert controller.trace.word_length[-1, 0] == 6
    assert 3 <= controller.trace.word_length[-1, 1] <= 5


def test_weights_loaded_later_keep_the_bounds():
    model, optimizer, controller = assembled(policy=RESTLESS, layer_bits=PINS)
    train(model, optimizer, 3, controller=controller)
    model.load_state_dict({name: 5 * value for name, value in net(3).state_dict().items()})
    train(model, optimizer, 3, first=3, controller=controller)
    assert (controller.trace.word_length[:, 0] == 6).all()


def test_patterns_may_name_layers_of_another_optimizer():
    model = net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    bits = {"0": 6, "2": 5}
    one, other = (adapt.attach(optimizer, model, RESTLESS, layer_bits=bits) for optimizer in (first, second))
    assert (one.formats["0.weight"].word_length, other.formats["2.weight"].word_length) == (6, 5)


def test_wrong_patterns_attach_nothing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'conv1'\] matches no layer: the layers are 0.weight, 2.weight"):
        adapt.attach(optimizer, model, layer_bits={"conv1": 8})
    assert adapt.attach(optimizer, model, layer_bits={"0": 8}).precisions["0.weight"].word_length == 8
    assert adapt.ASGD(net(), lr=0.1, layer_bits={"*": 5}).controller.formats["2.weight"].word_length == 5


def test_the_rounding_of_a_pinned_layer_is_what_the_forward_pass_sees():
    model, optimizer, controller = assembled(policy=RESTLESS, layer_bits={"0": 3}, rounding="nearest")
    train(model, optimizer, 8, controller=controller)
    model.eval()
    model(batch(0)[0])
    assert len(model[0].weight.unique()) <= 8
