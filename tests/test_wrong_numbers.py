"""Numbers that no training should produce, and some do: what they move, what they must not, and who is told."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt import learned
from tests.training import assembled, batch, copies, is_on_grid, loss_of, net, train


@pytest.mark.covering(2)
@pytest.mark.filterwarnings("ignore:the gradient of:UserWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantize_gradients", [False, True])
@pytest.mark.parametrize("push_up", ["suggestion", "diversity"])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted(value, quantize_gradients, push_up):
    policy = adapt.AdaPT(lookback=(3, 5), quantize_gradients=quantize_gradients, push_up=push_up)
    model, optimizer, controller = assembled(policy=policy)
    train(model, optimizer, 2, controller=controller)
    for _ in range(3):
        masters = copies(controller.masters)
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        model[0].weight.grad[0, 0] = value
        controller.observe(loss)
        optimizer.step()
        assert torch.equal(controller.masters["0.weight"], masters["0.weight"])
        assert not torch.equal(controller.masters["2.weight"], masters["2.weight"])
        assert controller.state_dict()["sums"]["0.weight"].isfinite().all()
    windows = controller.state_dict()["windows"]
    assert all(gradient.isfinite().all() for window in windows.values() for gradient in window)
    assert controller.skipped == {"0.weight": 3, "2.weight": 0}
    train(model, optimizer, 20, 5, controller)
    assert controller.trace.switches()[:, 0].any()


@pytest.mark.parametrize("loss", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_loss_that_is_not_finite_moves_no_strategy(loss):
    model, optimizer, controller = assembled()
    for step in range(10):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        controller.observe(loss)
        optimizer.step()
    assert len(controller.trace) == 10
    assert controller.state_dict()["state"]["strategy"] == "min"
    assert not controller.state_dict()["state"]["losses"]


@pytest.mark.parametrize("push_up", ["suggestion", "diversity"])
def test_zero_gradients(push_up):
    model, optimizer, controller = assembled(policy=adapt.AdaPT(lookback=(2, 4), push_up=push_up))
    masters = copies(controller.masters)
    for _ in range(12):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        controller.observe(1.0)
        optimizer.step()
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    assert np.isinf(controller.trace.diversity).all()


@pytest.mark.filterwarnings("ignore:every quantised weight:UserWarning")
@pytest.mark.parametrize("value", [0.0, -0.0, 0.3, 1.0, 1e30, -1e30, 1e-30, 1e-45, 3e38])
def test_weights_of_one_value(value):
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model, optimizer, controller = assembled(model)
    for step in range(10):
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-30
        controller.observe(1.0)
        optimizer.step()
        for name, precision in controller.precisions.items():
            assert is_on_grid(dict(model.named_parameters())[name], precision)
    assert len(controller.trace) == 10


@pytest.mark.filterwarnings("ignore:every quantised weight:UserWarning")
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("push_up", ["suggestion", "diversity"])
def test_extreme_weights_and_gradients(scale, push_up):
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * scale)
    controller = adapt.attach(optimizer, model, adapt.AdaPT(lookback=(2, 4), push_up=push_up), l1=1e-3)
    for step in range(15):
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
        controller.observe(1.0)
        optimizer.step()
        for name, precision in controller.precisions.items():
            assert is_on_grid(dict(model.named_parameters())[name], precision)
            assert controller.masters[name].isfinite().all()
    if push_up == "suggestion":
        assert np.isfinite(controller.trace.diversity[0]).all()


@pytest.mark.covering(1)
@pytest.mark.filterwarnings("ignore:every quantised weight:UserWarning")
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("push_up", ["suggestion", "diversity"])
def test_layers_of_one_element_and_of_none(shape, push_up):
    torch.manual_seed(0)
    parameters = {"odd": nn.Parameter(torch.randn(shape)), "even": nn.Parameter(torch.randn(3, 3))}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
    policy = adapt.AdaPT(lookback=(2, 4), push_up=push_up)
    controller = adapt.attach(optimizer, parameters, policy, l1=1e-3, l2=1e-3, quantize_biases=True)
    for _ in range(12):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape)
        controller.observe(1.0)
        optimizer.step()
        assert is_on_grid(parameters["odd"], controller.precisions["odd"])
    assert math.isfinite(controller.penalty().item())
    trace = controller.trace
    assert trace.nonzero[-1, 0] in (0.0, 1.0)
    assert len(trace) == 12


def test_two_thousand_layers():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(2, 3)) for _ in range(2000)]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    controller = adapt.attach(optimizer, parameters, adapt.AdaPT(lookback=(2, 3), resolution=(5, 5)))
    for _ in range(4):
        for parameter in parameters:
            parameter.grad = torch.randn(2, 3)
        controller.observe(1.0)
        optimizer.step()
    assert len(controller.precisions) == 2000
    assert controller.trace.word_length.shape == (4, 2000)
    assert controller.trace.switches().any(axis=0).mean() > 0.8


def warned(run):
    """The messages of the warnings that `run` gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught]


def test_a_gradient_that_is_not_finite_is_named_once():
    model, optimizer, controller = assembled()

    def run():
        for step in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            model[2].weight.grad[0, 0] = math.nan
            controller.observe(loss)
            optimizer.step()
        assert controller.skipped == {"0.weight": 0, "2.weight": 6}

    (message,) = warned(run)
    assert message.startswith("the gradient of 2.weight is not finite")


def test_master_weights_that_are_not_finite_keep_their_precision_and_are_named_once():
    model, optimizer, controller = assembled()
    train(model, optimizer, 4, controller=controller)
    with torch.no_grad():
        controller.masters["0.weight"][0, 0] = math.nan
    formats = controller.precisions

    def run():
        for step in range(20):
            # Its loss would not be finite: the gradients come from elsewhere.
            model(batch(step)[0])
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            controller.observe(1.0)
            optimizer.step()
        assert controller.trace.switches()[4:, 1].any()

    (message,) = warned(run)
    assert message == "the master weights of 0.weight are not finite: its precision stays as it is"
    assert controller.precisions["0.weight"] == formats["0.weight"]


def test_a_loss_that_is_never_shown_is_warned_about_once_and_the_strategy_stays():
    model, optimizer, controller = assembled()

    def run():
        train(model, optimizer, 15)
        controller.load_state_dict(controller.state_dict())
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(2, 2))]})
        train(model, optimizer, 5)

    (message,) = warned(run)
    assert "never saw the loss" in message
    assert "Call controller.observe(loss) before step(), pass a closure to step()" in message
    assert controller.state_dict()["state"]["strategy"] == "min"


@pytest.mark.parametrize(
    "policy",
    [
        adapt.Fixed(adapt.Precision(8, 6)),
        adapt.AdaPT.compact(bits=4),
        adapt.AdaPT.compact(bits=4, count="entropy"),
        adapt.AdaPT(push_up="diversity", lookback=(2, 3)),
    ],
)
def test_a_policy_that_does_not_look_at_the_loss_does_not_ask_for_it(policy):
    model, optimizer, _ = assembled(policy=policy)
    assert not warned(lambda: train(model, optimizer, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
@pytest.mark.parametrize(
    "attach",
    [
        lambda o, m: learned.attach_lsq(o, m, weight_bits=4),
        lambda o, m: learned.attach(o, m, weight_budget=learned.Budget(bits=4), phases=learned.Phases(2, 2, 2)),
    ],
)
def test_learned_formats_refuse_weights_that_are_not_finite_by_name(attach, name, value):
    model = net()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = value
    before = copies(model.named_parameters())
    with pytest.raises(ValueError, match=rf"{name} holds values that are not finite"):
        attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[key].nan_to_num(7.0))


@pytest.mark.parametrize("policy", [adapt.AdaPT.compact(), adapt.AdaPT(), adapt.Fixed(adapt.Precision(8, 6))])
def test_a_layer_that_was_initialised_to_zero_is_no_fault_of_its_format(policy):
    """Such as LoRA's second factor, a zero convolution, or a fresh head."""
    model, optimizer, controller = assembled(policy=policy)
    torch.nn.init.zeros_(model[2].weight)
    assert not warned(lambda: train(model, optimizer, 4, controller=controller))
    assert controller.trace.nonzero[-1, 1] > 0


def test_layers_that_l1_drives_to_zero_are_named_once():
    model, optimizer, controller = assembled(policy=adapt.Fixed(adapt.Precision(8, 4)), rounding="nearest", l1=0.5)

    def run():
        for _ in range(40):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        assert (controller.trace.nonzero[0] > 0).all()
        assert (controller.trace.nonzero[30:] == 0).all()

    messages = warned(run)
    for name in ("0.weight", "2.weight"):
        (message,) = (message for message in messages if name in message)
        assert message.startswith(f"every quantised weight of {name} is zero")
        assert "lower l1 if it is above 0" in message
