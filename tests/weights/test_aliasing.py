"""Parameters that are lent the masters for the update: nobody can tell but by the time it takes."""

import pytest
import torch
from torch import nn

import adapt
from tests.training import RESTLESS, copies, interrupted_update, is_on_grid, loss_of, net, train

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    "fused sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "foreach adamw": (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
}


def unknown(kind):
    """The same optimizer, under a name that nobody knows."""
    return type("Unknown", (kind,), {})


def run(kind, options, steps=12):
    model = net()
    optimizer = kind(model.parameters(), **options)
    controller = adapt.attach(optimizer, model, RESTLESS, l1=1e-3, l2=1e-3, quantize_biases=True)
    # Whoever wants to see the optimizer's own update gets it, from SGD too.
    optimizer.register_step_pre_hook(lambda *_: None)
    train(model, optimizer, steps, controller=controller)
    return model, optimizer, controller


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_same_to_the_bit_as_with_copies(name):
    kind, options = OPTIMIZERS[name]
    (model, _, lending), (twin, _, copying) = run(kind, options), run(unknown(kind), options)
    assert [masters.may_alias for masters in lending.all_masters] == [True, True]
    assert not any(masters.may_alias for masters in copying.all_masters)
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)
        assert torch.equal(left.grad, right.grad)
    for name, master in lending.masters.items():
        assert torch.equal(master, copying.masters[name])
    for field, values in lending.trace.state_dict().items():
        other = copying.trace.state_dict()[field]
        assert torch.equal(values.nan_to_num(), other.nan_to_num()) if torch.is_tensor(values) else values == other
    assert lending.trace.switches().any()


def test_the_update_finds_the_masters_and_everything_else_the_parameters_memory():
    model, optimizer, controller = run(torch.optim.SGD, {"lr": 0.05}, steps=1)
    layers = {name: p for name, p in model.named_parameters() if name in controller.masters}
    memory = {name: p.data_ptr() for name, p in layers.items()}
    met = []

    def look(*_):
        met.append({name: p.data_ptr() for name, p in layers.items()})

    optimizer.register_step_pre_hook(look)
    train(model, optimizer, 2, 1, controller)
    assert met == [{name: master.data_ptr() for name, master in controller.masters.items()}] * 2
    assert {name: p.data_ptr() for name, p in layers.items()} == memory


def test_a_graph_from_before_the_step_cannot_go_backward_after_it():
    model, optimizer, controller = run(torch.optim.SGD, {"lr": 0.05}, steps=1)
    loss = loss_of(model, 1)
    loss.backward(retain_graph=True)
    controller.observe(loss)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("then", ["forward", "half a forward", "step", "detach", "master_weights", "load"])
def test_after_an_update_that_was_cut_short_parameters_have_their_own_memory_again(then):
    model, optimizer, controller = run(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, steps=3)
    layers = {name: p for name, p in model.named_parameters() if name in controller.masters}
    memory = {name: p.data_ptr() for name, p in layers.items()}
    loss_of(model, 3).backward()
    controller.observe(1.0)

    with interrupted_update():
        optimizer.step()
    if then == "forward":
        loss_of(model, 3)
    elif then == "half a forward":
        model[2](torch.zeros(1, 8))
        assert is_on_grid(model[2].weight, controller.precisions["2.weight"])
        loss_of(model, 3)
    elif then == "master_weights":
        with controller.master_weights():
            assert all(torch.equal(p, controller.masters[name]) for name, p in layers.items())
        loss_of(model, 3)
    elif then == "load":
        values = {name: torch.full_like(p, 0.25) for name, p in model.state_dict().items()}
        model.load_state_dict(values)
        loss_of(model, 3)
        assert all(torch.equal(master, torch.full_like(master, 0.25)) for master in controller.masters.values())
    elif then == "step":
        train(model, optimizer, 2, 3, controller)
    else:
        controller.detach()
    assert {name: p.data_ptr() for name, p in layers.items()} == memory
    for name, parameter in layers.items():
        assert is_on_grid(parameter, controller.precisions[name])


def test_what_is_loaded_in_the_middle_of_a_step_is_updated_like_the_rest():
    model, optimizer, controller = run(torch.optim.SGD, {"lr": 0.5}, steps=1)
    values = {name: torch.full_like(p, 0.25) for name, p in model.state_dict().items()}
    handle = optimizer.register_step_pre_hook(
        lambda *_: model[0].load_state_dict({k: values[f"0.{k}"] for k in ("weight", "bias")}) and None
    )
    train(model, optimizer, 1, 1, controller)
    handle.remove()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(controller.masters["0.weight"], values["0.weight"] - 0.5 * gradients["0.weight"])


def test_parameters_of_another_class_are_not_lent_anything():
    class Marked(nn.Parameter):
        pass

    model = net()
    model[0].weight = Marked(model[0].weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)
    before = copies(controller.masters)
    train(model, optimizer, 3, controller=controller)
    assert all(not torch.equal(master, before[name]) for name, master in controller.masters.items())
    assert type(model[0].weight) is Marked
