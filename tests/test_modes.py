"""Which weights the parameters show: rounded as training rounds, rounded to nearest, or the masters themselves."""

import contextlib
import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import adapt
from tests.training import RESTLESS, Witness, assembled, batch, copies, is_on_grid, loss_of, net, train


def nearest(controller):
    """What evaluation should see."""
    return {name: adapt.quantize(m, controller.precisions[name]) for name, m in controller.masters.items()}


def shows(model, expected):
    """Whether the layers of the model hold these values, bit for bit."""
    parameters = dict(model.named_parameters())
    return all(torch.equal(parameters[name], values) for name, values in expected.items())


def layers(model, controller):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name in controller.precisions}


def trained(steps=5, **options):
    model, optimizer, controller = assembled(**options)
    train(model, optimizer, steps, controller=controller)
    return model, optimizer, controller


# Training and evaluation mode


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_evaluation_sees_nearest_and_training_gets_its_own_back(context):
    model, _, controller = trained()
    training = layers(model, controller)
    inputs, _ = batch(0)
    for _ in range(2):
        model.eval()
        with context():
            outputs = model(inputs)
        assert shows(model, nearest(controller))
        assert torch.equal(outputs, plain_copy(model)(inputs))
        model.train()
        model(inputs)
        assert shows(model, training)
    assert not shows(model, nearest(controller)), "stochastic rounding should differ somewhere"


def plain_copy(model):
    twin = net()
    twin.load_state_dict(model.state_dict())
    return twin


def test_evaluation_does_not_disturb_training():
    runs = []
    for evaluating in (False, True):
        model, optimizer, controller = assembled()
        for step in range(15):
            if evaluating:
                model.eval()(batch(step)[0])
                model.train()
            train(model, optimizer, 1, step, controller)
        runs.append(copies(controller.masters))
    assert all(torch.equal(master, runs[1][name]) for name, master in runs[0].items())


def test_parts_of_a_network_may_be_in_different_modes():
    model, _, controller = trained()
    training, evaluation = layers(model, controller), nearest(controller)
    model[0].eval()
    loss = loss_of(model, 0)
    assert shows(model, {"0.weight": evaluation["0.weight"], "2.weight": training["2.weight"]})
    loss.backward()
    assert model[0].weight.grad is not None
    model[0].train()
    model[2].eval()
    loss_of(model, 0)
    assert shows(model, {"0.weight": training["0.weight"], "2.weight": evaluation["2.weight"]})


class Borrowing(nn.Module):
    """Uses the weight of a module that it never calls, as attention does with its output projection."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lent = nn.Linear(6, 3)

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.lent.weight)


def test_the_mode_of_the_module_that_owns_a_weight_counts():
    model = Borrowing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)
    train(model, optimizer, 5, controller=controller)
    training = layers(model, controller)
    model.lent.eval()
    model(batch(0)[0])
    assert shows(model, nearest(controller))
    assert not shows(model, training)
    model.eval()
    model.lent.train()
    model(batch(0)[0])
    assert shows(model, training)


def test_a_frozen_backbone_in_evaluation_mode_is_trained_through():
    torch.manual_seed(0)
    stem, backbone, head = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 3)
    model = nn.Sequential(stem, backbone, head)
    backbone.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)
    witness = Witness(model, controller)
    before, frozen = copies(controller.masters), copies(backbone.state_dict())
    for step in range(12):
        model.train()
        backbone.eval()
        train(model, optimizer, 1, step, controller)
        model.eval()
        model(batch(step)[0])
    witness.check(24)
    assert list(before) == ["0.weight", "2.weight"]
    assert not any(torch.equal(master, before[name]) for name, master in controller.masters.items())
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_evaluation_between_forward_and_backward_is_harmless(rounding):
    gradients = []
    for evaluating in (False, True):
        model, _, _ = trained(rounding=rounding)
        loss = loss_of(model, 0)
        if evaluating:
            model.eval()(batch(1)[0])
            model.train()
        loss.backward()
        gradients.append(copies({name: p.grad for name, p in model.named_parameters()}))
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


# Contexts


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_contexts_show_what_they_say_and_give_back_what_was(mode):
    model, _, controller = trained()
    model.train(mode)(batch(0)[0])
    before = layers(model, controller)
    with controller.master_weights():
        assert shows(model, controller.masters)
        for inner in (True, False, mode):
            model.train(inner)(batch(0)[0])
            assert shows(model, controller.masters)
        with controller.evaluation_weights():
            assert shows(model, nearest(controller))
            model.train()(batch(0)[0])
            assert shows(model, nearest(controller))
            model.train(mode)
        assert shows(model, controller.masters)
    assert shows(model, before)


def test_a_context_ends_with_an_exception_too():
    model, _, controller = trained()
    before = layers(model, controller)
    with pytest.raises(KeyError), controller.master_weights():
        raise KeyError
    assert shows(model, before)
    model.eval()(batch(0)[0])
    assert shows(model, nearest(controller))


@pytest.mark.parametrize("make", [lambda model: dict(model.named_parameters()), lambda model: list(model.parameters())])
def test_a_module_that_was_not_passed_is_found_when_it_runs(make):
    model, unrelated = net(), nn.Linear(6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, make(model), RESTLESS)
    wrapped = nn.Sequential(nn.Identity(), model)
    for step in range(5):
        unrelated(batch(step)[0])
        train(wrapped, optimizer, 1, step, controller)
    wrapped.eval()(batch(0)[0])
    for parameter, (name, master) in zip((model[0].weight, model[2].weight), controller.masters.items(), strict=True):
        assert torch.equal(parameter, adapt.quantize(master, controller.precisions[name]))
    assert not torch.nn.modules.module._global_forward_pre_hooks


def functional(model, inputs):
    """The network's outputs, without calling it or a part of it."""
    hidden = torch.tanh(nn.functional.linear(inputs, model[0].weight, model[0].bias))
    return nn.functional.linear(hidden, model[2].weight, model[2].bias)


@pytest.mark.parametrize("pass_module", [True, False])
def test_a_step_whose_forward_pass_nobody_saw_is_warned_about_once(pass_module):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model if pass_module else dict(model.named_parameters()), RESTLESS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            loss = functional(model, batch(step)[0]).square().mean()
            loss.backward()
            controller.observe(loss)
            optimizer.step()
    found = [str(w.message) for w in caught if "saw no forward pass" in str(w.message)]
    assert len(found) == 1
    assert "controller.evaluation_weights()" in found[0]
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("use_context", [True, False])
def test_a_controller_that_is_dropped_or_detached_no_longer_looks_for_its_module(use_context):
    model = net()
    controller = adapt.attach(torch.optim.SGD(model.parameters(), lr=0.05), list(model.parameters()), RESTLESS)
    assert torch.nn.modules.module._global_forward_pre_hooks
    if use_context:
        controller.detach()
    del controller
    gc.collect()
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_contexts_serve_where_there_is_no_module():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, dict(model.named_parameters()), RESTLESS)
    for step in range(5):
        functional(model, batch(step)[0]).square().mean().backward()
        controller.observe(1.0)
        optimizer.step()
    before = layers(model, controller)
    model.eval()(batch(0)[0])
    assert shows(model, before), "the module was not seen before the first step"
    with controller.evaluation_weights():
        assert shows(model, nearest(controller))
    assert shows(model, before)


# Copies


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_network_is_a_plain_network(how):
    model, optimizer, controller = trained()
    twin = how(model)
    seen = copies(twin.named_parameters())
    assert shows(twin, layers(model, controller))
    twin.eval()(batch(0)[0])
    twin.train()(batch(0)[0])
    train(model, optimizer, 2, 5, controller)
    model.eval()(batch(0)[0])
    assert shows(twin, seen), "the copy must not follow the original"
    before = layers(model, controller)
    with torch.no_grad():
        twin.load_state_dict({name: torch.full_like(p, 0.3) for name, p in twin.named_parameters()})
    assert shows(model, before), "nor the original the copy"
    assert (twin[0].weight == 0.3).all()
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.05), 1)
    train(model.train(), optimizer, 2, 7, controller)
    assert controller.step == 9


def test_a_network_saved_whole_comes_back_plain():
    model, _, controller = trained()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert shows(twin, layers(model, controller))
    twin.eval()(batch(0)[0])


# torch.compile


class Net(nn.Module):
    """A class of its own, which torch.compile treats otherwise than torch's containers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


@pytest.fixture
def compiled():
    """`torch.compile` with counted frames; whole graphs only, so that a hook which breaks one is an error."""
    torch._dynamo.reset()
    frames = []

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    def compile_(model, **options):
        return torch.compile(model, fullgraph=True, **({"backend": backend} | options))

    compile_.frames = frames
    yield compile_
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [net, Net])
def test_a_compiled_network_passed_as_such_is_seen_in_every_mode(compiled, make):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapped = compiled(model)
    controller = adapt.attach(optimizer, wrapped, RESTLESS)
    assert set(controller.precisions) == {name for name, p in model.named_parameters() if p.ndim == 2}
    for step in range(10):
        wrapped.train()
        train(wrapped, optimizer, 1, step, controller)
        wrapped(batch(step)[0])
        for name, precision in controller.precisions.items():
            assert is_on_grid(dict(model.named_parameters())[name], precision)
        wrapped.eval()
        outputs = wrapped(batch(step)[0])
        assert shows(model, nearest(controller))
        torch.testing.assert_close(outputs, model(batch(step)[0]))
    assert controller.trace.switches().any()
    assert len(compiled.frames) == 1, "nothing is compiled anew when formats change"


def test_a_compiled_run_is_the_eager_run(compiled):
    runs = []
    for wrap in (lambda model: model, lambda model: compiled(model, backend="aot_eager")):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        wrapped = wrap(model)
        controller = adapt.attach(optimizer, wrapped, RESTLESS)
        train(wrapped, optimizer, 12, controller=controller)
        runs.append((copies(controller.masters), controller.precisions))
    assert runs[0][1] == runs[1][1]
    for name, master in runs[0][0].items():
        torch.testing.assert_close(master, runs[1][0][name])


@pytest.mark.parametrize("how", ["wrapped afterwards", "wrapped before, passed bare", "compiled in place"])
def test_where_compiled_hooks_do_not_run_training_is_right_and_a_context_evaluates(compiled, how):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if how == "wrapped before, passed bare":
        wrapped = compiled(model)
    controller = adapt.attach(optimizer, model, RESTLESS)
    if how == "wrapped afterwards":
        wrapped = compiled(model)
    elif how == "compiled in place":
        model.compile(fullgraph=True, backend="eager")
        wrapped = model
    for step in range(8):
        train(wrapped, optimizer, 1, step, controller)
        for name, precision in controller.precisions.items():
            assert is_on_grid(dict(model.named_parameters())[name], precision)
    before = layers(model, controller)
    wrapped.eval()
    with controller.evaluation_weights():
        outputs = wrapped(batch(0)[0])
        assert shows(model, nearest(controller))
        torch.testing.assert_close(outputs, nn.Sequential(model.first, nn.Tanh(), model.second)(batch(0)[0]))
    assert shows(model, before)
