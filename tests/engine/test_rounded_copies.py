"""A copy of the network, such as an average that somebody else keeps, computes what the network would in evaluation."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import adapt
from adapt import learned
from tests.training import RESTLESS, loss_of, net


def adaptive(model, optimizer):
    return adapt.attach(optimizer, model, RESTLESS, quantize_biases=True, activations="range")


def widths(model, optimizer):
    inputs = [torch.randn(8, 6, generator=torch.Generator().manual_seed(2))]
    return learned.attach_lsq(optimizer, model, inputs, weight_bits=4, activation_bits=4)


def trained(attach, average=None):
    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = attach(model, optimizer)
    average = average and average(model)
    for step in range(6):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        if average is not None:
            with controller.master_weights():
                average.update_parameters(model)
    return model, controller, average


@pytest.mark.parametrize("attach", [adaptive, widths])
def test_a_copy_of_the_masters_computes_what_evaluation_does(attach):
    latest = lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0))  # noqa: E731
    model, controller, average = trained(attach, latest)
    inputs = torch.randn(5, 6)
    for copied in (average, average.module):
        assert torch.equal(controller.quantized(copied)(inputs), model.eval()(inputs))


def test_an_average_is_rounded_in_a_copy_and_the_run_goes_on():
    model, controller, average = trained(adaptive, AveragedModel)
    means = {name: p.detach().clone() for name, p in average.module.named_parameters()}
    shown = {name: p.detach().clone() for name, p in model.named_parameters()}
    rounded = controller.quantized(average)
    assert isinstance(rounded, AveragedModel)
    for name in controller.layers:
        assert torch.equal(rounded.module.get_parameter(name), controller.formats[name].quantize(means[name]))
        assert not torch.equal(rounded.module.get_parameter(name), means[name])
    assert all(torch.equal(p, means[name]) for name, p in average.module.named_parameters())
    assert all(torch.equal(p, shown[name]) for name, p in model.named_parameters())


def test_another_network_is_refused():
    _, controller, _ = trained(adaptive)
    with pytest.raises(ValueError, match=r"module has no parameter '0\.weight': give the network that is trained"):
        controller.quantized(nn.Linear(6, 3))
