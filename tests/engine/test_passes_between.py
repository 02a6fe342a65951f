"""Passes in another mode between a forward pass and its backward pass: as harmless as passes of a copy."""

import contextlib
import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt import torch_internals
from adapt.kernels import backend
from adapt.weights.substitutes import Substitutes
from tests.training import batch

PRECISION = adapt.Precision(6, 4)


class Recurrent(nn.Module):
    """Weights of an embedding, a recurrent layer and a tied projection."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.projection = nn.Linear(6, 5, bias=False)
        self.projection.weight = self.embedding.weight

    def forward(self, inputs):
        tokens = (inputs[:, :3].abs() * 10).long() % 5
        return self.projection(self.recurrent(self.embedding(tokens))[0][:, -1])


NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 3)
    ),
    "recurrent": Recurrent,
}


def trained(kind="linear", rounding="stochastic", steps=3):
    torch.manual_seed(0)
    model = NETWORKS[kind]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, model, adapt.Fixed(PRECISION), rounding=rounding)
    for step in range(steps):
        optimizer.zero_grad()
        model(batch(step)[0]).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, controller


def plain(model, controller, view):
    """A copy without a controller that shows this view of the weights, whatever its mode."""
    twin = copy.deepcopy(model)
    if view == "training":
        return twin
    rounded = controller.masters
    if view == "evaluation":
        rounded = {name: adapt.quantize(master, PRECISION) for name, master in rounded.items()}
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in rounded:
                parameter.copy_(rounded[name])
    return twin


def gradients(*models):
    """The sum over the models of each parameter's gradient."""
    sums = {}
    for model in models:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums[name] + parameter.grad if name in sums else parameter.grad.clone()
    return sums


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.covering(2)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("kind", NETWORKS)
def test_pseudo_labels_between_forward_and_backward_leave_its_gradients_as_they_are(kind, context, rounding):
    model, optimizer, controller = trained(kind, rounding)
    student, teacher = plain(model, controller, "training"), plain(model, controller, "evaluation").eval()
    shown = {name: p.detach().clone() for name, p in model.named_parameters()}
    outputs = model(batch(7)[0])
    model.eval()
    with context():
        labels = model(batch(8)[0]).argmax(1)
    labels = labels.clone()
    model.train()
    assert all(torch.equal(p, shown[name]) for name, p in model.named_parameters())
    expected = student(batch(7)[0])
    assert torch.equal(labels, teacher(batch(8)[0]).argmax(1))
    nn.functional.cross_entropy(outputs, labels).backward()
    nn.functional.cross_entropy(expected, labels).backward()
    assert_same(gradients(model), gradients(student))
    optimizer.step()
    assert controller.step == 4


@given(
    passes=st.lists(
        st.tuples(st.sampled_from(["training", "evaluation"]), st.booleans(), st.booleans()), min_size=1, max_size=6
    ),
    kind=st.sampled_from(["linear", "recurrent"]),
)
def test_passes_of_both_modes_in_any_order_have_the_gradients_of_copies(passes, kind):
    model, optimizer, controller = trained(kind)
    copies = {view: plain(model, controller, view) for view in ("training", "evaluation")}
    # What waits for its backward pass all the time.
    waiting, expected = [model(batch(9)[0]).square().mean()], [copies["training"](batch(9)[0]).square().mean()]
    for number, (view, with_graph, backward_at_once) in enumerate(passes):
        inputs = batch(number)[0]
        model.train(view == "training")
        with torch.set_grad_enabled(with_graph):
            losses = model(inputs).square().mean(), copies[view](inputs).square().mean()
        torch.testing.assert_close(*losses)
        if with_graph:
            waiting.append(losses[0])
            expected.append(losses[1])
            if backward_at_once:
                waiting.pop().backward()
    for loss in waiting:
        loss.backward()
    for loss in expected:
        loss.backward()
    assert_same(gradients(model), gradients(*copies.values()))
    optimizer.step()
    for name, master in controller.masters.items():
        parameter = dict(model.named_parameters())[name]
        assert torch.equal(parameter, adapt.quantize(parameter.detach(), PRECISION))
        assert not master.isnan().any()


@pytest.mark.parametrize("context", ["evaluation_weights", "master_weights"])
@pytest.mark.parametrize("with_graph", [True, False])
def test_contexts_between_forward_and_backward_too(context, with_graph):
    model, _, controller = trained("convolution")
    view = context.removesuffix("_weights").replace("master", "masters")
    student, teacher = plain(model, controller, "training"), plain(model, controller, view)
    loss = model(batch(7)[0]).square().mean()
    with getattr(controller, context)(), torch.set_grad_enabled(with_graph):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), teacher.parameters(), strict=True))
        other = model(batch(8)[0]).square().mean()
    (loss + other).backward()
    reference = student(batch(7)[0]).square().mean()
    with torch.set_grad_enabled(with_graph):
        other = teacher(batch(8)[0]).square().mean()
    (reference + other).backward()
    assert_same(gradients(model), gradients(student, teacher) if with_graph else gradients(student))


def test_second_derivatives_go_through_a_pass_between():
    model, _, controller = trained()
    student, teacher = plain(model, controller, "training"), plain(model, controller, "evaluation")
    results = []
    for first, second in ((model, model), (student, teacher)):
        inputs = batch(8)[0].requires_grad_()
        loss = first(batch(7)[0]).square().mean()
        second.eval()
        slopes = torch.autograd.grad(second(inputs).square().sum(), inputs, create_graph=True)[0]
        second.train()
        (loss + slopes.square().sum()).backward()
        results.append(gradients(first) if first is second else gradients(first, second))
    assert_same(*results)


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(6, 3), error

    def forward(self, inputs):
        outputs = self.layer(inputs)
        if not self.training:
            raise self.error
        return outputs


@pytest.mark.covering(1)
@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
@pytest.mark.parametrize("then", ["backward", "forward", "step"])
def test_a_pass_between_that_fails_gives_the_weights_back(error, then):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Failing(error))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, model, adapt.Fixed(PRECISION))
    model(batch(0)[0]).square().mean().backward()
    optimizer.step()
    memory = model[1].layer.weight.data_ptr()
    shown = model[1].layer.weight.detach().clone()
    loss = model(batch(1)[0]).square().mean()
    model.eval()
    with pytest.raises(type(error)):
        model(batch(1)[0])
    model.train()
    if then == "forward" or isinstance(error, KeyboardInterrupt):
        # Nothing tells of an interrupt before the next pass.
        model(batch(2)[0])
    assert torch.equal(model[1].layer.weight, shown)
    loss.backward()
    if then == "step":
        optimizer.step()
        assert controller.step == 2
    assert model[1].layer.weight.data_ptr() == memory
    x = torch.ones(1, requires_grad=True)
    assert x.square().grad_fn._saved_self is x, "hooks on saved tensors are left behind"


def test_a_part_called_alone_gives_back_when_it_returns():
    model, _, controller = trained()
    shown = model[2].weight.detach().clone()
    student = plain(model, controller, "training")
    loss, expected = (m(batch(0)[0]).square().mean() for m in (model, student))
    model[2].eval()
    rounded = adapt.quantize(controller.masters["2.weight"], PRECISION)
    inputs = torch.eye(8)
    assert torch.equal(model[2](inputs) - model[2].bias, rounded.t() + model[2].bias - model[2].bias)
    assert torch.equal(model[2].weight, shown)
    loss.backward()
    expected.backward()
    assert_same(gradients(model), gradients(student))


def test_a_graph_from_before_a_step_is_refused_after_it_whatever_the_mode():
    model, optimizer, _ = trained()
    losses = [model(batch(0)[0]).square().mean()]
    model.train(False)
    with torch.no_grad():
        model(batch(0)[0])
    model.train()
    model(batch(1)[0]).square().mean().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[0].backward()


def test_an_activation_that_is_overwritten_in_a_pass_between_is_noticed():
    model, _, _ = trained()
    loss = model(batch(0)[0]).square().mean()
    model.eval()
    hidden = model[1](model[0](batch(1)[0]))
    outputs = model[2](hidden)
    model.train()
    with torch.no_grad():
        hidden.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()
    loss.backward()


def test_a_graph_in_evaluation_mode_is_refused_after_a_pass_in_training_mode():
    model, _, _ = trained()
    loss = model.eval()(batch(0)[0]).square().mean()
    model.train()(batch(1)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_training_in_evaluation_mode_goes_on_as_ever():
    model, optimizer, controller = trained()
    model.eval()
    for _ in range(3):
        optimizer.zero_grad()
        losses = [model(batch(micro)[0]).square().mean() for micro in range(2)]
        sum(losses).backward()
        optimizer.step()
    assert controller.step == 6


def test_where_no_graph_waits_parameters_keep_what_evaluation_saw():
    model, _, controller = trained()
    memory = [p.data_ptr() for p in model.parameters()]
    model.eval()(batch(0)[0])
    for name, master in controller.masters.items():
        assert torch.equal(dict(model.named_parameters())[name], adapt.quantize(master, PRECISION))
    assert [p.data_ptr() for p in model.parameters()] == memory


class Interrupted(BaseException):
    """Raised in the middle, as Ctrl-C is."""


@pytest.mark.parametrize("waits", [False, True], ids=["no graph", "a graph waits"])
@pytest.mark.parametrize("way", ["mode", "evaluation_weights", "master_weights"])
def test_an_interrupted_change_of_view_is_no_write(way, waits, monkeypatch):
    """Ctrl-C arrives while the weights are rounded, when validation begins: no master may lose what rounding took."""
    model, _, controller = trained()
    masters = {name: master.clone() for name, master in controller.masters.items()}
    shown = {name: p.detach().clone() for name, p in model.named_parameters()}
    waiting = [model(batch(0)[0])] if waits else []
    if waits:
        owner, name = Substitutes, "begin"
    elif way == "master_weights":
        owner, name = torch_internals, "foreach_copy"
    else:
        owner, name = backend("cpu"), "quantize_"
    write = getattr(owner, name)

    def interrupted(*arguments, **options):
        write(*arguments, **options)
        raise Interrupted

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(Interrupted):  # noqa: PT012
        if way == "mode":
            model.eval()(batch(1)[0])
        else:
            with getattr(controller, way)():
                pass
    monkeypatch.undo()
    model.train()(batch(1)[0])
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    assert all(torch.equal(p, shown[name]) for name, p in model.named_parameters())
    waiting.clear()
    model.eval()(batch(1)[0])
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    for name, master in masters.items():
        assert torch.equal(dict(model.named_parameters())[name], adapt.quantize(master, PRECISION))
