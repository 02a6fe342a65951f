"""What is saved and loaded: weights into masters, states of the optimizer, refusals that change nothing, copies."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt import learned
from adapt.engine import persistence
from adapt.engine.persistence import KEY
from tests.training import (
    CLIMBING,
    RESTLESS,
    assembled,
    batch,
    copies,
    is_on_grid,
    loss_of,
    net,
    through_a_file,
    train,
)


def trained(steps=7, seed=0, **options):
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = adapt.attach(optimizer, model, RESTLESS, **options)
    train(model, optimizer, steps, controller=controller)
    return model, optimizer, controller


def picture(model, optimizer, controller):
    """All that a refused state must leave alone."""
    return (
        copies(model.named_parameters()),
        copies(controller.masters),
        controller.precisions,
        controller.step,
        controller.trace.word_length.tolist(),
        copy.deepcopy(optimizer.state_dict()["state"]),
    )


def same(first, second):
    if isinstance(first, torch.Tensor):
        # NaN stands for a figure that is not known yet.
        return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


# Resuming


@pytest.mark.covering(1)
@pytest.mark.parametrize("stop", [0, 1, 5, 10])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rounding": "nearest", "seed": 3},
        {"quantize_biases": True, "l1": 1e-3, "l1_by_word_length": True},
        {"policy": adapt.AdaPT(lookback=(3, 6), push_up="diversity")},
        {"policy": adapt.Fixed(adapt.Precision(6, 5)), "trace_every": 3},
        {"policy": CLIMBING, "quantize_biases": True},
    ],
    ids=["AdaPT", "nearest", "biases", "algorithm 4", "Fixed", "MuPPET"],
)
def test_a_resumed_run_is_the_uninterrupted_run(options, stop):
    def fresh(seed):
        model = net(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, adapt.attach(optimizer, model, **({"policy": RESTLESS} | options))

    model, optimizer, controller = fresh(0)
    train(model, optimizer, stop, controller=controller)
    state = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, 12, stop, controller)

    other_model, other_optimizer, other = fresh(1)
    other_model.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(other_model, other_optimizer, 12, stop, other)

    assert same(copies(other_model.named_parameters()), copies(model.named_parameters()))
    assert same(copies(other.masters), copies(controller.masters))
    assert other.precisions == controller.precisions
    assert other.step == controller.step
    for field in (
        "step",
        "word_length",
        "fraction_length",
        "nonzero",
        "lookback",
        "resolution",
        "diversity",
        "divergence",
        "strategy",
        "rounding_cost",
    ):
        np.testing.assert_array_equal(getattr(other.trace, field), getattr(controller.trace, field), field)
    other_model.eval()(batch(0)[0])
    model.eval()(batch(0)[0])
    assert same(copies(other_model.named_parameters()), copies(model.named_parameters()))


# Weights


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_float32_weights_become_the_masters(mode):
    model, optimizer, controller = trained()
    model.train(mode)(batch(0)[0])
    other = net(1)
    model.load_state_dict(other.state_dict())
    for name, weight in copies(other.named_parameters()).items():
        if name in controller.precisions:
            precision = controller.precisions[name]
            assert torch.equal(controller.masters[name], weight)
            assert is_on_grid(dict(model.named_parameters())[name], precision)
            if not mode:
                assert torch.equal(dict(model.named_parameters())[name], adapt.quantize(weight, precision))
        else:
            assert torch.equal(dict(model.named_parameters())[name], weight)
    train(model.train(), optimizer, 1, controller=controller)
    assert torch.allclose(controller.masters["0.weight"], other[0].weight, atol=0.2)


def test_weights_of_a_submodule_become_its_masters():
    model, _, controller = trained()
    masters, other = copies(controller.masters), net(1)
    model[2].load_state_dict(other[2].state_dict())
    assert torch.equal(controller.masters["2.weight"], other[2].weight)
    assert torch.equal(controller.masters["0.weight"], masters["0.weight"])


def test_a_part_of_the_weights_changes_a_part_of_the_masters():
    model, _, controller = trained()
    masters, other = copies(controller.masters), net(1)
    model.load_state_dict({"2.weight": other[2].weight}, strict=False)
    assert torch.equal(controller.masters["2.weight"], other[2].weight)
    assert torch.equal(controller.masters["0.weight"], masters["0.weight"])


def test_weights_that_do_not_fit_change_nothing():
    model, optimizer, controller = trained()
    before = picture(model, optimizer, controller)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model[0].load_state_dict({"weight": torch.zeros(3, 3), "bias": model[0].bias})
    assert same(picture(model, optimizer, controller), before)


def test_the_quantised_weights_load_into_a_plain_network():
    model, _, controller = trained()
    plain = net(1)
    plain.load_state_dict(through_a_file(model.state_dict()))
    for name, precision in controller.precisions.items():
        assert torch.equal(dict(plain.named_parameters())[name], adapt.quantize(controller.masters[name], precision))
    model.eval()
    torch.testing.assert_close(plain(batch(0)[0]), model(batch(0)[0]), rtol=0, atol=0)


@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
def test_the_order_of_loading_model_and_optimizer_does_not_matter(order):
    model, optimizer, controller = trained()
    state = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other_model, other_optimizer, other = trained(3, seed=1)
    for name in order:
        {"model": other_model, "optimizer": other_optimizer}[name].load_state_dict(state[name])
    assert same(copies(other.masters), copies(controller.masters))
    assert same(copies(other_model.named_parameters()), copies(model.named_parameters()))


def test_names_from_a_compiled_network_fit_the_plain_one():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapped = torch.compile(model, backend="eager")
    controller = adapt.attach(optimizer, wrapped, RESTLESS)
    assert all(name.startswith("_orig_mod.") for name in wrapped.state_dict())
    train(model, optimizer, 5, controller=controller)
    _, other_optimizer, other = assembled(net(1))
    other_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same(copies(other.masters), copies(controller.masters))
    wrapped.load_state_dict({f"_orig_mod.{name}": w for name, w in net(2).state_dict().items()})
    assert torch.equal(controller.masters["0.weight"], net(2)[0].weight)


def test_a_float32_checkpoint_of_a_plain_run_goes_on_quantised():
    plain = net(1)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    train(plain, plain_optimizer, 5)
    model, optimizer, controller = trained(0)
    model.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match="only weights that are loaded into the module get new formats"):
        optimizer.load_state_dict(plain_optimizer.state_dict())
    assert torch.equal(controller.masters["0.weight"], plain[0].weight)
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    assert torch.equal(momentum, plain_optimizer.state[plain[0].weight]["momentum_buffer"])


def test_a_state_with_precision_loads_into_a_plain_optimizer():
    _, optimizer, _ = trained()
    plain = net()
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    plain_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert plain_optimizer.param_groups[0]["lr"] == 0.05
    train(plain, plain_optimizer, 1)


# Refusals


def other_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Linear(3, 3))


def narrower_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("make", "policy", "message"),
    [
        (other_network, RESTLESS, r"1 layers are unknown \(3\.weight\)\. Load it with strict=False"),
        (narrower_network, RESTLESS, r"should hold 'masters' of 0\.weight as torch\.float32 \[8, 6\]"),
        (net, adapt.Fixed(adapt.Precision(8, 4)), "written by the policy Fixed, not by AdaPT"),
    ],
)
def test_a_state_of_another_run_changes_nothing(make, policy, message):
    model, optimizer, controller = trained()
    before = picture(model, optimizer, controller)
    other = make()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    foreign = adapt.attach(other_optimizer, other, policy)
    train(other, other_optimizer, 3, controller=foreign)
    with pytest.raises(ValueError, match=message):
        controller.load_state_dict(foreign.state_dict())
    with pytest.raises(ValueError, match=r"parameters, but this optimizer has|" + message):
        optimizer.load_state_dict(other_optimizer.state_dict())
    assert same(picture(model, optimizer, controller), before)


def test_a_state_with_quantised_biases_needs_quantised_biases():
    with_biases = trained(quantize_biases=True)[2].state_dict()
    without = trained()[2].state_dict()
    for options, state, message in (
        ({}, with_biases, "holds quantised biases: attach with quantize_biases=True"),
        ({"quantize_biases": True}, without, r"should hold 'followers' of 0\.bias"),
    ):
        model, optimizer, controller = trained(3, **options)
        before = picture(model, optimizer, controller)
        with pytest.raises(ValueError, match=message):
            controller.load_state_dict(state)
        assert same(picture(model, optimizer, controller), before)
        controller.load_state_dict(state, strict=False)
        assert controller.step == 7


def test_a_state_of_other_groups_changes_nothing():
    model, optimizer, controller = trained()
    before = picture(model, optimizer, controller)
    other = net()
    other_optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in (other[0], other[2])], lr=0.1)
    foreign = adapt.attach(other_optimizer, other, RESTLESS)
    train(other, other_optimizer, 2, controller=foreign)
    with pytest.raises(ValueError, match=r"groups with \[2, 2\] parameters, but this optimizer has \[4\]"):
        optimizer.load_state_dict(other_optimizer.state_dict())
    assert same(picture(model, optimizer, controller), before)


def test_a_run_that_diverged_goes_on_from_its_state():
    """Loading looks at no weight that it replaces: the first formats of `compact` could not be found of these."""
    model, optimizer, controller = assembled(policy=adapt.AdaPT.compact())
    train(model, optimizer, 3, controller=controller)
    state = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        for master in controller.masters.values():
            master.fill_(torch.nan)
    optimizer.load_state_dict(state)
    for name, master in controller.masters.items():
        assert torch.equal(master, state[KEY]["masters"][name])
    train(model, optimizer, 3, 3, controller)
    assert all(is_on_grid(model.get_parameter(name), form) for name, form in controller.precisions.items())


def test_layers_are_matched_by_name_where_that_is_asked_for():
    _, _optimizer, controller = trained()
    other = other_network()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
    foreign = adapt.attach(other_optimizer, other, RESTLESS, seed=9)
    train(other, other_optimizer, 4, controller=foreign)
    last = foreign.masters["3.weight"].clone()

    foreign.load_state_dict(controller.state_dict(), strict=False)
    assert foreign.step == controller.step
    for name, precision in controller.precisions.items():
        assert torch.equal(foreign.masters[name], controller.masters[name])
        assert foreign.precisions[name] == precision
        assert is_on_grid(dict(other.named_parameters())[name], precision)
    assert torch.equal(foreign.masters["3.weight"], last)
    assert foreign.precisions["3.weight"] == RESTLESS.initial
    train(other, other_optimizer, 5, controller=foreign)
    assert foreign.trace.layers == ("0.weight", "2.weight", "3.weight")
    assert foreign.trace.step.tolist() == list(range(controller.step + 1, controller.step + 6))

    back = trained(0)[2]
    back.load_state_dict(foreign.state_dict(), strict=False)
    assert set(back.precisions) == {"0.weight", "2.weight"}
    assert torch.equal(back.masters["0.weight"], foreign.masters["0.weight"])


# Copies of optimizers


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_asgd_refuses_to_step_and_says_what_to_do(how):
    model = net()
    optimizer = adapt.ASGD(model, lr=0.05, momentum=0.9, policy=RESTLESS)
    train(model, optimizer, 5, controller=optimizer.controller)
    twin, twin_optimizer = how((model, optimizer))
    weights = copies(twin.named_parameters())
    loss_of(twin, 0).backward()
    with pytest.raises(RuntimeError, match=r"copy without a controller.*make a new adapt\.ASGD for the copied model"):
        twin_optimizer.step()
    assert same(copies(twin.named_parameters()), weights)

    again = adapt.ASGD(twin, lr=0.05, momentum=0.9, policy=RESTLESS)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, again)):
        train(m, o, 5, 5, o.controller)
    assert same(copies(twin.named_parameters()), copies(model.named_parameters()))


def test_a_copied_optimizer_of_torch_is_plain():
    model, optimizer, controller = trained()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    steps, weights = controller.step, copies(model.named_parameters())
    train(twin, twin_optimizer, 3)
    assert controller.step == steps
    assert same(copies(model.named_parameters()), weights)
    assert KEY not in twin_optimizer.state_dict()
    train(model, optimizer, 3, controller=controller)
    assert controller.step == steps + 3


def test_the_copies_layers_can_be_attached():
    model, optimizer, controller = trained()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    again = adapt.attach(twin_optimizer, twin, RESTLESS)
    again.load_state_dict(controller.state_dict())
    for m, o, c in ((model, optimizer, controller), (twin, twin_optimizer, again)):
        train(m, o, 6, 7, c)
    assert same(copies(twin.named_parameters()), copies(model.named_parameters()))


def test_a_state_is_a_copy():
    model, optimizer, controller = trained()
    state = controller.state_dict()
    kept = copy.deepcopy({key: value for key, value in state.items() if key != "trace"})
    train(model, optimizer, 6, 7, controller)
    assert same({key: state[key] for key in kept}, kept)
    before = copies(controller.masters)
    other = trained(0)[2]
    other.load_state_dict(state)
    with torch.no_grad():
        for tensor in (*state["masters"].values(), *state["sums"].values()):
            tensor.zero_()
    assert other.masters["0.weight"].abs().sum() > 0
    assert same(copies(controller.masters), before)


def test_a_state_that_rounds_activations_needs_rounded_activations():
    state = trained(activations="range")[2].state_dict()
    model, optimizer, controller = trained(3)
    before = picture(model, optimizer, controller)
    with pytest.raises(ValueError, match="rounds activations: attach with the same activations"):
        controller.load_state_dict(state)
    assert same(picture(model, optimizer, controller), before)
    controller.load_state_dict(state, strict=False)


def test_the_trace_goes_on_where_a_layer_had_joined():
    """The run that goes on has the same layers from the start, in the order of the module."""
    model = net()
    model[0].weight.requires_grad_(False)
    model, optimizer, controller = assembled(model, RESTLESS)
    train(model, optimizer, 1, controller=controller)
    model[0].weight.requires_grad_(True)
    train(model, optimizer, 3, 1, controller)
    _, other_optimizer, other_controller = assembled(net(), RESTLESS)
    other_optimizer.load_state_dict(optimizer.state_dict())
    trace, found = controller.trace, other_controller.trace
    assert found.layers == trace.layers[::-1] == ("0.weight", "2.weight")
    assert found.numel.tolist() == trace.numel.tolist()[::-1]
    assert found.step.tolist() == trace.step.tolist() == [1, 2, 3, 4]
    assert found.word_length.tolist() == trace.word_length[:, ::-1].tolist()
    assert found.word_length[0].tolist() == [32, trace.word_length[0, 0]]


def broken_trace(state):
    state["trace"] = persistence.to_bytes(adapt.Trace(["other"], [3]).state_dict())


def earlier_than_its_trace(state):
    state["step"] = 2


def endless_window(state):
    state["state"]["lookback"][0] = float("inf")


def negative_resolution(state):
    state["state"]["resolution"][0] = -1


def negative_divergence(state):
    state["state"]["divergence"][0] = -1.0


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (broken_trace, "layers must be"),
        (earlier_than_its_trace, "is of step 2, but its trace goes to 7"),
        (endless_window, "lookback of AdaPT's state must be finite numbers ≥ 1"),
        (negative_resolution, "resolution of AdaPT's state must be finite numbers ≥ 1"),
        (negative_divergence, "diversity and divergence of AdaPT's state must be at least 1 and 0"),
    ],
)
def test_a_state_that_no_run_comes_to_changes_nothing(breaks, message):
    state = copy.deepcopy(trained()[2].state_dict())
    breaks(state)
    model, optimizer, controller = trained(3)
    before = picture(model, optimizer, controller)
    with pytest.raises(ValueError, match=message):
        controller.load_state_dict(state)
    assert same(picture(model, optimizer, controller), before)


def with_a_late_backbone(*, unfrozen):
    """A head that is trained, and a backbone that joins its optimizer."""
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)
    model[0].requires_grad_(unfrozen)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    return model, optimizer, controller


@pytest.mark.parametrize("unfrozen", [True, False])
def test_a_state_finds_the_layers_that_joined_before_it_was_written(unfrozen):
    """In the run that goes on they are still frozen, perhaps: it does not know yet that they were unfrozen."""
    model, optimizer, controller = with_a_late_backbone(unfrozen=True)
    train(model, optimizer, 5, controller=controller)
    states = model.state_dict(), optimizer.state_dict()
    other, other_optimizer, other_controller = with_a_late_backbone(unfrozen=unfrozen)
    other.load_state_dict(states[0])
    other_optimizer.load_state_dict(states[1])
    other[0].requires_grad_(True)
    for run in ((model, optimizer, 3, 5, controller), (other, other_optimizer, 3, 5, other_controller)):
        train(*run)
    assert same(picture(model, optimizer, controller), picture(other, other_optimizer, other_controller))


def test_a_learners_state_is_of_another_kind():
    model = net()
    learner = learned.attach_lsq(torch.optim.SGD(model.parameters(), lr=0.1), model, weight_bits=4)
    _, _, controller = trained()
    with pytest.raises(ValueError, match="of another kind of controller, one of learned widths"):
        controller.load_state_dict(learner.state_dict())
