"""ASGD is torch's SGD with a controller: nothing more, nothing less."""

import copy

import pytest
import torch

import adapt
from tests.training import RESTLESS, copies, net, train


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        {"momentum": 0.9, "dampening": 0.5, "foreach": True},
        {"fused": True, "maximize": True},
    ],
)
def test_it_is_sgd_with_a_controller(options):
    runs = []
    for swapped in (False, True):
        model = net()
        if swapped:
            optimizer = adapt.ASGD(model, 0.05, **options, policy=RESTLESS, seed=4, rounding="stochastic")
            controller = optimizer.controller
        else:
            optimizer = torch.optim.SGD(model.parameters(), 0.05, **options)
            controller = adapt.attach(optimizer, model, RESTLESS, seed=4)
        train(model, optimizer, 15, controller=controller)
        runs.append((copies(model.named_parameters()), copies(controller.masters), controller.precisions))
        assert controller.trace.switches().any()
    (weights, masters, precisions), other = runs
    assert all(torch.equal(weight, other[0][name]) for name, weight in weights.items())
    assert all(torch.equal(master, other[1][name]) for name, master in masters.items())
    assert precisions == other[2]


def test_options_of_the_controller_reach_it():
    model = net()
    optimizer = adapt.ASGD(
        model, lr=0.05, policy=RESTLESS, l1=0.1, layers=lambda name, parameter: name == "2.weight", trace_every=5
    )
    assert list(optimizer.controller.precisions) == ["2.weight"]
    train(model, optimizer, 10, controller=optimizer.controller)
    assert optimizer.controller.trace.step.tolist() == [5, 10]
    assert optimizer.controller.penalty() > 0.1 * optimizer.controller.masters["2.weight"].abs().sum()


def test_the_papers_policy_is_the_default():
    assert adapt.ASGD(net()).controller.policy == adapt.AdaPT()


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (lambda model: model, ["0.weight", "2.weight"]),
        (lambda model: model.named_parameters(), ["0.weight", "2.weight"]),
        (lambda model: dict(model.named_parameters()), ["0.weight", "2.weight"]),
        (lambda model: model.parameters(), ["parameter_0", "parameter_2"]),
    ],
)
def test_it_takes_a_module_named_parameters_or_parameters(params, names):
    model = net()
    optimizer = adapt.ASGD(params(model), lr=0.05, policy=RESTLESS)
    assert list(optimizer.controller.precisions) == names
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in model.parameters()]
    train(model, optimizer, 3, controller=optimizer.controller)


def test_the_loss_of_a_closure_is_learned_without_being_shown(recwarn):
    model = net()
    optimizer = adapt.ASGD(model, lr=0.05, policy=RESTLESS)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss

    first, last = [optimizer.step(closure).item() for _ in range(20)][::19]
    assert last < first
    assert len(optimizer.controller.trace) == 20
    assert not recwarn


def groups(model, named):
    """The first layer with another rate than the second; parameters by name, if `named`."""
    parts = [list(layer.named_parameters(prefix)) for prefix, layer in (("first", model[0]), ("second", model[2]))]
    if not named:
        parts = [[parameter for _, parameter in part] for part in parts]
    # Iterators, which can be read once.
    return [{"params": iter(parts[0]), "lr": 0.2}, {"params": iter(parts[1])}]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("as_iterator", [False, True])
def test_it_takes_groups(named, as_iterator):
    model, twin = net(), net()
    made = groups(model, named)
    optimizer = adapt.ASGD(iter(made) if as_iterator else made, lr=0.05, policy=RESTLESS)
    names = ["first.weight", "second.weight"] if named else ["parameter_0", "parameter_2"]
    assert list(optimizer.controller.precisions) == names
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.05]
    plain = torch.optim.SGD(groups(twin, named), lr=0.05)
    # The names matter to the random streams.
    controller = adapt.attach(plain, groups(twin, named), RESTLESS)
    train(model, optimizer, 9, controller=optimizer.controller)
    train(twin, plain, 9, controller=controller)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_a_run_with_groups_resumes(named):
    model = net()
    optimizer = adapt.ASGD(groups(model, named), lr=0.05, momentum=0.9, policy=RESTLESS)
    train(model, optimizer, 6, controller=optimizer.controller)
    state, weights = copy.deepcopy(optimizer.state_dict()), copies(model.state_dict())
    train(model, optimizer, 6, 6, optimizer.controller)
    again = net(1)
    resumed = adapt.ASGD(groups(again, named), lr=0.05, momentum=0.9, policy=RESTLESS)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, resumed, 6, 6, resumed.controller)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_groups_that_are_none():
    model = net()
    with pytest.raises(ValueError, match="params names two parameters 'a': give each its own name"):
        adapt.ASGD([{"params": [("a", model[0].weight)]}, {"params": [("a", model[2].weight)]}])
    with pytest.raises(TypeError, match="dict"):
        adapt.ASGD([{"params": model[0].parameters()}, model[2].weight])
