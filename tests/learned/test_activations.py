"""Inputs of layers are rounded with a learned step and range, and pass back what these get."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.learned import attach_lsq, quantize
from tests.learned.networks import gradient_sums, gradients_of_formats, learning, pictures, train
from tests.training import Conv1D


def seen(model, inputs, training):
    """What each layer's own forward pass gets."""
    found, handles = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            handles.append(
                layer.register_forward_pre_hook(lambda m, args, name=name: found.__setitem__(name, args[0].detach()))
            )
    model.train(training)
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("training", [True, False])
def test_every_layers_input_is_on_its_grid(training):
    model, optimizer, learner = learning()
    train(model, optimizer, 4)
    for name, x in seen(model, pictures(50)[0], training).items():
        form = learner.formats[f"{name}.input"]
        step, maximum = form.step.item(), form.maximum
        levels = (x / step).round()
        torch.testing.assert_close(x, levels * step, rtol=1e-5, atol=1e-6)
        assert levels.max() <= np.rint(maximum / step)
        assert form.signed == (name == "first" or name == "grouped")
        assert (levels.min() < 0) == form.signed


def test_gradients_are_those_of_autograd_through_the_quantiser():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    from adapt.learned import Budget, Phases, attach

    learner = attach(
        optimizer,
        model,
        [torch.randn(50, 6)],
        weight_budget=Budget(bits=4),
        activation_budget=Budget(bits=2),
        phases=Phases(0, 100, 0),
    )
    x = (2 * torch.randn(40, 6)).requires_grad_()
    model(x).square().sum().backward()
    found = x.grad

    twin = copy.deepcopy(model)
    leaves = {}
    for layer, name in ((0, "0.input"), (2, "2.input")):
        leaves[name] = [
            torch.tensor(a[0].item(), requires_grad=True) for a in (learner.steps[name], learner.ranges[name])
        ]
        twin[layer].register_forward_pre_hook(
            lambda m, args, name=name: quantize(
                args[0], *leaves[name], signed=bool(learner.formats[name].signed), scaling="invtanh"
            )
        )
    y = x.detach().clone().requires_grad_()
    twin(y).square().sum().backward()
    torch.testing.assert_close(found, y.grad, rtol=1e-4, atol=1e-4)
    for name, (step, maximum) in leaves.items():
        site = name.replace("input", "weight.input")
        to_step, to_range = gradients_of_formats(learner, gradient_sums(learner)[site], site)
        assert to_step.item() == pytest.approx(step.grad.item(), rel=1e-3)
        assert to_range.item() == pytest.approx(maximum.grad.item(), rel=1e-3)


def test_the_networks_input_passes_back_though_it_needs_no_gradient():
    model, _optimizer, learner = learning()
    inputs, targets = pictures(0)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    assert gradient_sums(learner)["first.weight.input"].any()


def test_evaluation_with_gradients_tells_the_formats_nothing():
    model, _, learner = learning()
    model.eval()
    inputs, targets = pictures(0)
    before = gradient_sums(learner)
    nn.functional.cross_entropy(model(inputs.requires_grad_()), targets).backward()
    assert inputs.grad.abs().sum() > 0
    assert all(torch.equal(sums, before[name]) for name, sums in gradient_sums(learner).items())


def test_micro_batches_add_up():
    model, _optimizer, learner = learning()
    inputs, targets = pictures(0)
    model.norm.eval()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    once = gradient_sums(learner)
    for part in (slice(0, 4), slice(4, 8)):
        (nn.functional.cross_entropy(model(inputs[part]), targets[part]) / 2).backward()
    inputs = [name for name in once if name.endswith(".input")]
    assert len(inputs) == 5
    for name in inputs:
        twice = gradient_sums(learner)[name] - once[name]
        torch.testing.assert_close(twice[:, :3], once[name][:, :3], rtol=1e-3, atol=1e-5)


def test_bfloat16_autocast_rounds_too():
    model, optimizer, learner = learning()
    inputs, targets = pictures(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    sums = gradient_sums(learner)
    assert all(sums[name].isfinite().all() and sums[name][:, 3] > 0 for name in sums if name.endswith(".input"))


def test_masters_run_on_plain_activations():
    model, optimizer, learner = learning()
    train(model, optimizer, 4)
    inputs = pictures(3)[0]
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, master in learner.masters.items():
            plain.get_parameter(name).copy_(master)
        with learner.master_weights():
            torch.testing.assert_close(model.eval()(inputs), plain(inputs))
        assert not torch.allclose(model(inputs), plain(inputs))


def test_copies_are_plain_models():
    model, _, _ = learning()
    inputs = pictures(3)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found = seen(other, inputs, True)
        assert torch.equal(found["first"], inputs)


def test_layers_that_calibration_does_not_reach_keep_their_inputs():
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, both=False):
            return self.spare(self.used(x)) if both else self.used(x)

    from adapt.learned import Budget, Phases, attach

    model = Partial()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"did not reach spare.weight.input"):
        learner = attach(
            optimizer,
            model,
            [torch.randn(8, 4)],
            weight_budget=Budget(bits=4),
            activation_budget=Budget(bits=4),
            phases=Phases(1, 4, 1),
        )
    assert "spare.input" not in learner.formats
    model(torch.randn(8, 4), both=True).sum().backward()
    optimizer.step()


def test_a_network_without_an_input_that_can_be_quantised_is_refused_for_that():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ self.weight

    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of the module's layers has an input that can be quantised"):
        attach_lsq(optimizer, model, [torch.randn(8, 4)], weight_bits=4, activation_bits=4, steps=10)


class Keywords(nn.Module):
    """Calls its layers by keywords alone, one of which has a name of its own for its input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), Conv1D(3, 5)

    def forward(self, inputs):
        return self.second(x=self.first(input=inputs).relu())


@pytest.mark.parametrize("attach", ["lsq", "adaptive"])
def test_inputs_that_are_given_by_keyword_are_rounded_too(attach):
    torch.manual_seed(0)
    model, x = Keywords(), torch.randn(50, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if attach == "lsq":
        controller = attach_lsq(optimizer, model, [x], weight_bits=4, activation_bits=3)
    else:
        controller = adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(4, 2)), activations="layer")
    seen = []
    for layer in (model.first, model.second):
        hook = lambda module, args, kwargs: seen.append(*kwargs.values())  # noqa: E731
        layer.register_forward_pre_hook(hook, with_kwargs=True)
    found = [model.eval()(x)]
    for name, inputs in zip(("first.input", "second.input"), seen, strict=True):
        assert torch.equal(controller.formats[name].quantize(inputs), inputs)
    controller.detach(keep_activations=True)
    found.append(model(x))
    assert torch.equal(*found)


def test_a_warning_names_the_modules_whose_activations_stay():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.gru, self.head = nn.Embedding(7, 6), nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, tokens):
            return self.head(self.gru(self.table(tokens))[0])

    model = Mixed()
    with pytest.warns(UserWarning, match="activations of gru stay float32, because what"):
        attach_lsq(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            [torch.randint(7, (5, 4))],
            weight_bits=4,
            activation_bits=4,
        )
