"""What is saved, handed over and rounded of a network whose parameters show one of several views of their masters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import adapt
from adapt.engine.registry import attached

PRECISION = adapt.Precision(5, 4)


def trained(steps=3, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, net, adapt.Fixed(PRECISION), **options)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
    return net, optimizer, controller


def nearest(controller):
    return {name: adapt.quantize(master, PRECISION) for name, master in controller.masters.items()}


def same(found, expected):
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_saved_weights_are_those_that_evaluation_sees_and_the_parameters_stay():
    net, _, controller = trained()
    before = copy.deepcopy({name: p.detach() for name, p in net.named_parameters()})
    saved = net.state_dict()
    assert same(saved, nearest(controller))
    assert not same(before, nearest(controller)), "stochastic rounding should differ from nearest somewhere"
    assert same(dict(net.named_parameters()), before)
    assert saved.keys() == dict(net.named_parameters()).keys()


def test_saved_weights_of_a_submodule_too():
    net, _, controller = trained()
    assert torch.equal(net[2].state_dict()["weight"], nearest(controller)["2.weight"])


def test_keep_vars_answers_the_parameters_themselves():
    net, _, _ = trained()
    assert net.state_dict(keep_vars=True)["0.weight"] is net[0].weight


def test_within_master_weights_the_masters_are_saved():
    net, _, controller = trained()
    with controller.master_weights():
        assert same(net.state_dict(), controller.masters)


def test_loading_what_was_saved_changes_no_master():
    net, _, controller = trained()
    masters = copy.deepcopy(controller.masters)
    net.load_state_dict(net.state_dict())
    assert same(controller.masters, masters)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("view", ["evaluation", "masters"])
def test_detach_leaves_the_view_that_it_is_asked_for(view, rounding):
    net, optimizer, controller = trained(rounding=rounding)
    expected = nearest(controller) if view == "evaluation" else copy.deepcopy(controller.masters)
    controller.detach(view)
    assert same(dict(net.named_parameters()), expected)
    assert attached(optimizer) is None


def test_detach_reaches_parameters_that_were_moved_to_other_memory():
    net, _, controller = trained()
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()
    controller.detach()
    assert same(dict(net.named_parameters()), nearest(controller))


def test_detaching_again_changes_nothing():
    net, _, controller = trained()
    controller.detach()
    with torch.no_grad():
        net[0].weight.fill_(0.3)
    net[0].weight.data = net[0].weight.data.clone()
    controller.detach()
    assert (net[0].weight == 0.3).all()


def test_detach_refuses_a_view_that_there_is_not():
    _, optimizer, controller = trained()
    with pytest.raises(ValueError, match='view must be "evaluation" or "masters", got \'float32\''):
        controller.detach("float32")
    assert attached(optimizer) is controller


def test_losses_shown_after_detach_are_not_kept():
    _, _, controller = trained()
    controller.detach()
    controller.observe(torch.tensor(1.0))
    assert controller.state_dict()["micro_losses"] == []


def test_quantize_rounds_foreign_values_and_no_master():
    net, _, controller = trained()
    masters = copy.deepcopy(controller.masters)
    foreign = torch.randn_like(net[0].weight)
    with torch.no_grad():
        net[0].weight.copy_(foreign)
    controller.quantize_()
    assert torch.equal(net[0].weight, adapt.quantize(foreign, PRECISION))
    assert same(controller.masters, masters)


def test_an_optimizer_knows_its_controller():
    _, optimizer, controller = trained()
    assert attached(optimizer) is controller
    assert attached(torch.optim.SGD([torch.zeros(1, requires_grad=True)])) is None


def test_one_look_at_the_optimizer_for_a_call_of_the_whole_module():
    net, optimizer, _controller = trained()
    looks = []

    class Groups(list):
        def __iter__(self):
            looks.append(1)
            return super().__iter__()

    optimizer.param_groups = Groups(optimizer.param_groups)
    net(torch.zeros(1, 6))
    assert len(looks) == 1
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.zeros(1, 7))
    assert len(looks) == 2
    net[0](torch.zeros(1, 6))
    net[2](torch.zeros(1, 8))
    assert len(looks) == 4, "alone, each looks for itself"


def test_saved_weights_of_a_pruned_and_of_a_parametrised_layer_are_those_of_evaluation_too():
    net, optimizer, controller = trained()
    prune.l1_unstructured(net[0], "weight", 0.3)
    parametrize.register_parametrization(net[2], "weight", nn.Identity())
    net(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    expected = nearest(controller)
    saved = net.state_dict()
    assert torch.equal(saved["0.weight_orig"], expected["0.weight"])
    assert torch.equal(saved["2.parametrizations.weight.original"], expected["2.weight"])


@pytest.mark.parametrize("context", ["master_weights", "evaluation_weights"])
def test_within_a_context_neither_detach_nor_loading(context):
    net, optimizer, controller = trained()
    state = optimizer.state_dict()
    with getattr(controller, context)():
        with pytest.raises(RuntimeError, match=r"detach\(\) within master_weights\(\) or evaluation_weights\(\)"):
            controller.detach()
        with pytest.raises(RuntimeError, match="loading a state within"):
            optimizer.load_state_dict(state)
        assert controller.is_attached
    controller.detach()
    assert same(dict(net.named_parameters()), nearest(controller))


def test_after_detach_no_context_brings_the_old_weights_back():
    net, optimizer, controller = trained()
    state = controller.state_dict()
    controller.detach()
    net(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    learned = {name: p.detach().clone() for name, p in net.named_parameters()}
    for use in (
        lambda: controller.master_weights().__enter__(),
        lambda: controller.evaluation_weights().__enter__(),
        lambda: controller.load_state_dict(state),
    ):
        with pytest.raises(RuntimeError, match="this controller was detached"):
            use()
    assert same(dict(net.named_parameters()), learned)


def test_a_layer_that_a_pass_in_inference_mode_takes_in_trains():
    net, optimizer, controller = trained(0)
    extra = nn.Linear(2, 2)
    net.append(extra)
    optimizer.add_param_group({"params": list(extra.parameters())})
    with torch.inference_mode():
        net.eval()(torch.randn(4, 6))
    net.train()(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    assert torch.equal(extra.weight, adapt.quantize(extra.weight.detach(), PRECISION))
    assert "3.weight" in controller.masters
