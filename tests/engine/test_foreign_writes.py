"""What others write into parameters between two steps: it becomes the masters, and nothing else does."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt import learned
from tests.training import batch, copies

PRECISION = adapt.Precision(7, 5)
LIMIT = 2 / 32


def trained(steps=3, rounding="stochastic", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, model, adapt.Fixed(PRECISION), rounding=rounding, **options)
    go_on(model, optimizer, steps)
    return model, optimizer, controller


def go_on(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(batch(step)[0]).square().mean().backward()
        optimizer.step()


def look(how, model, optimizer):
    """Let somebody look at the weights who should see the masters rounded."""
    if how == "training":
        model.train()(batch(0)[0])
    elif how == "evaluation":
        model.eval()(batch(0)[0])
    elif how == "checkpoint":
        return model.state_dict()
    elif how == "optimizer":
        optimizer.state_dict()
    return {name: p.detach() for name, p in model.named_parameters()}


LOOKS = ("training", "evaluation", "checkpoint", "optimizer")

WRITES = {
    "clamp": lambda p: p.clamp_(-0.1, 0.1),
    "mask": lambda p: p.mul_(torch.arange(p.numel()).view_as(p) % 2),
    "norm": lambda p: p.mul_(0.3 / p.norm()),
    "fill": lambda p: p.fill_(0.33),
    "off the grid": lambda p: p.add_(0.003),
    "one": lambda p: p.view(-1)[5].fill_(0.7),
    "nothing": lambda p: p.copy_(p.clone()),
}


@given(
    write=st.sampled_from(list(WRITES)),
    how=st.sampled_from(LOOKS),
    rounding=st.sampled_from(["stochastic", "nearest"]),
    evaluated=st.booleans(),
)
def test_elements_that_were_written_become_masters_and_no_others(write, how, rounding, evaluated):
    model, optimizer, controller = trained(rounding=rounding)
    if evaluated:
        model.eval()(batch(0)[0])
    masters = copies(controller.masters)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name in masters:
            WRITES[write](dict(model.named_parameters())[name])
    written = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = look(how, model, optimizer)
    for name, master in controller.masters.items():
        expected = torch.where(written[name] == before[name], masters[name], written[name])
        assert torch.equal(master, expected)
        if how in ("evaluation", "checkpoint"):
            assert torch.equal(seen[name], adapt.quantize(expected, PRECISION))
        assert torch.equal(seen[name], adapt.quantize(seen[name], PRECISION))


def test_the_update_of_the_next_step_begins_where_the_write_ended():
    model, optimizer, controller = trained()
    with torch.no_grad():
        model[0].weight.fill_(0.26)
    optimizer.zero_grad()
    model(batch(5)[0]).square().mean().backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(controller.masters["0.weight"], 0.26 - 0.1 * gradient)


def test_weights_that_are_clamped_after_every_step_stay_clamped():
    model, optimizer, controller = trained(0)
    for step in range(20):
        go_on(model, optimizer, 1, step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-LIMIT, LIMIT)
    model.eval()(batch(0)[0])
    assert max(p.abs().max() for p in model.parameters()) <= LIMIT
    # A master that was rounded to the limit itself was not written.
    assert max(master.abs().max() for master in controller.masters.values()) < LIMIT + PRECISION.step


@pytest.mark.parametrize("how", ["evaluation", "checkpoint"])
def test_writes_through_data_are_seen_where_evaluation_or_a_checkpoint_looks(how):
    model, optimizer, controller = trained()
    for parameter in model.parameters():
        parameter.data.clamp_(-LIMIT, LIMIT)
    seen = look(how, model, optimizer)
    assert max(seen[name].abs().max() for name in controller.masters) <= LIMIT
    # From now on they are expected, and seen in training too.
    go_on(model, optimizer, 1)
    model[0].weight.data.fill_(0.33)
    model.train()(batch(0)[0])
    assert (controller.masters["0.weight"] == torch.full((), 0.33)).all()
    assert torch.equal(model[0].weight, adapt.quantize(model[0].weight.detach(), PRECISION))


def assigned(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.clamp(-LIMIT, LIMIT)


def from_vector(model):
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector.detach().clamp(-LIMIT, LIMIT), model.parameters())


GUESTS = {
    "policy": lambda o, m: adapt.attach(o, m, adapt.AdaPT.compact()),
    "LSQ": lambda o, m: learned.attach_lsq(o, m, weight_bits=8),
    "AQT": lambda o, m: learned.attach_aqt(o, m, steps=20, activation_bits=None),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("how", LOOKS)
@pytest.mark.parametrize("write", [assigned, from_vector])
@pytest.mark.parametrize("attach", GUESTS.values(), ids=GUESTS)
@pytest.mark.filterwarnings("ignore:the controller never saw the loss")
def test_parameters_that_are_given_other_memory_bring_their_values_along(attach, write, how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = attach(optimizer, model)
    go_on(model, optimizer, 5)
    masters, before = copies(controller.masters), copies(model.named_parameters())
    write(model)
    written = copies(model.named_parameters())
    look(how, model, optimizer)
    for name, master in controller.masters.items():
        assert torch.equal(master, torch.where(written[name] == before[name], masters[name], written[name]))
    go_on(model.train(), optimizer, 1)


@pytest.mark.covering(2)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("stored", ["training", "evaluation"])
def test_weights_that_are_lent_for_an_evaluation_and_put_back_leave_no_trace(rounding, evaluate, stored):
    model, optimizer, controller = trained(rounding=rounding)
    if stored == "evaluation":
        model.eval()(batch(0)[0])
    masters = copies(controller.masters)
    kept = [p.detach().clone() for p in model.parameters()]
    mean = [torch.randn_like(p) * 0.3 for p in model.parameters()]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), mean, strict=True):
            parameter.copy_(value)
    if evaluate:
        model.eval()(batch(0)[0])
        assert torch.equal(model[0].weight, adapt.quantize(mean[0], PRECISION))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)
    model.train()(batch(0)[0])
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    go_on(model, optimizer, 1)


def test_a_mean_of_the_masters_can_be_copied_back():
    model, optimizer, controller = trained()
    with controller.master_weights():
        averaged = torch.optim.swa_utils.AveragedModel(model)
        averaged.update_parameters(model)
    go_on(model, optimizer, 2)
    with controller.master_weights():
        averaged.update_parameters(model)
        with torch.no_grad():
            for parameter, mean in zip(model.parameters(), averaged.module.parameters(), strict=True):
                parameter.copy_(mean)
    model.train()(batch(0)[0])
    assert all(
        torch.equal(master, dict(averaged.module.named_parameters())[name])
        for name, master in controller.masters.items()
    )


def test_a_mean_of_what_training_sees_can_be_copied_back():
    model, optimizer, controller = trained()
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for step in range(3):
        go_on(model, optimizer, 1, step)
        averaged.update_parameters(model)
    shown, masters = copies(model.named_parameters()), copies(controller.masters)
    with torch.no_grad():
        for parameter, mean in zip(model.parameters(), averaged.module.parameters(), strict=True):
            parameter.copy_(mean)
    saved = model.state_dict()
    for name, master in masters.items():
        mean = averaged.module.state_dict()[name]
        expected = torch.where(mean == shown[name], master, mean)
        assert torch.equal(controller.masters[name], expected)
        assert torch.equal(saved[name], adapt.quantize(expected, PRECISION))


def test_a_write_in_a_context_is_a_write():
    model, _, controller = trained()
    with controller.evaluation_weights(), torch.no_grad():
        model[0].weight.fill_(0.33)
    assert (controller.masters["0.weight"] == torch.full((), 0.33)).all()
    assert torch.equal(model[0].weight, adapt.quantize(model[0].weight.detach(), PRECISION))


def test_a_write_between_forward_and_backward_is_refused_by_autograd_and_kept():
    model, _, controller = trained()
    loss = model(batch(0)[0]).square().mean()
    with torch.no_grad():
        model[2].weight.clamp_(-0.01, 0.01)
    model.eval()(batch(1)[0])
    model.train()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert controller.masters["2.weight"].abs().max() <= 0.01


def test_what_quantize_rounds_is_no_write():
    model, optimizer, controller = trained()
    masters = copies(controller.masters)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn_like(model[0].weight))
    controller.quantize_()
    model(batch(0)[0])
    model.eval()(batch(0)[0])
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    assert torch.equal(model[0].weight, adapt.quantize(masters["0.weight"], PRECISION))
    go_on(model.train(), optimizer, 1)


def test_detached_weights_keep_a_late_write():
    model, _, controller = trained()
    with torch.no_grad():
        model[0].weight.fill_(0.25)
    controller.detach()
    assert (model[0].weight == 0.25).all()


def test_biases_too():
    model, _, controller = trained(quantize_biases=True)
    with torch.no_grad():
        model[0].bias.fill_(0.7)
    model(batch(0)[0])
    bias = controller.all_masters[1]
    assert (bias.weights[bias.names.index("0.bias")] == torch.full((), 0.7)).all()


def test_training_without_foreign_writes_is_as_before():
    runs = []
    for probing in (False, True):
        model, optimizer, controller = trained(0)
        for step in range(40):
            go_on(model, optimizer, 1, step)
            if probing:
                copy.deepcopy(model.state_dict())
                model.eval()(batch(step)[0])
                model.train()
        runs.append(np.concatenate([master.numpy().ravel() for master in controller.masters.values()]))
    np.testing.assert_array_equal(*runs)
