"""Steps that are not simple: optimizers that call others, closures that fail or are called twice, interruptions."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.adaptive.masters import FixedPointMasters
from tests.training import RESTLESS, assembled, copies, is_on_grid, loss_of, net, train


class Overriding(torch.optim.SGD):
    """An optimizer whose step does more after its parent's."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.5)
        return loss


class EvaluatingFirst(torch.optim.SGD):
    """An optimizer that evaluates the closure itself."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("kind", [Overriding, EvaluatingFirst])
def test_an_optimizer_that_calls_its_parents_step_makes_one_step(kind, with_closure):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)  # from now on the parent's step calls hooks too
    assert hasattr(torch.optim.SGD.step, "hooked")
    model = net()
    optimizer = kind(model.parameters(), lr=0.1)
    controller = adapt.attach(optimizer, model, adapt.AdaPT(), l2=0.01)
    for step in range(3):
        masters = copies(controller.masters)
        optimizer.zero_grad()
        gradients = {}

        def closure(step=step, gradients=gradients):
            loss = loss_of(model, step)
            loss.backward()
            gradients.update(copies({name: p.grad for name, p in model.named_parameters()}))
            return loss

        if with_closure:
            optimizer.step(closure)
        else:
            controller.observe(closure())
            optimizer.step()
        for name, master in masters.items():
            gradient = gradients[name]
            expected = master - 0.1 * (gradient / gradient.norm() + 0.01 * master)
            expected = expected / 2 if kind is Overriding else expected
            torch.testing.assert_close(controller.masters[name], expected)
            assert is_on_grid(dict(model.named_parameters())[name], controller.precisions[name])
    assert controller.trace.step.tolist() == [1, 2, 3]
    assert controller.state_dict()["state"]["gradients"].tolist() == [3, 3]


class Failing(torch.optim.SGD):
    """An optimizer that is interrupted in the middle of its update when it is told to."""

    interrupted = False

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.interrupted:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            raise KeyboardInterrupt
        super().step()
        return loss


class FailingInside(torch.optim.SGD):
    """An optimizer that is interrupted within its parent's step, which has the hooks too."""

    interrupted = False

    def step(self, closure=None):
        return super().step(closure)

    def _init_group(self, *args):
        if self.interrupted:
            raise KeyboardInterrupt
        return super()._init_group(*args)


@pytest.mark.parametrize("kind", [Failing, FailingInside])
@pytest.mark.parametrize("with_closure", [False, True])
def test_training_goes_on_after_an_interrupted_step(kind, with_closure):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    model = net()
    optimizer = kind(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)

    def step(number):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, number)
            for name, precision in controller.precisions.items():
                assert is_on_grid(dict(model.named_parameters())[name], precision)
            loss.backward()
            return loss

        if with_closure:
            optimizer.step(closure)
        else:
            controller.observe(closure())
            optimizer.step()

    for number in range(8):
        optimizer.interrupted = number in (2, 3, 5)
        masters = copies(controller.masters)
        if optimizer.interrupted:
            with pytest.raises(KeyboardInterrupt):
                step(number)
            assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
        else:
            step(number)
            assert not any(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    assert controller.trace.step.tolist() == list(range(1, 9))


def test_a_step_that_fails_before_its_update_leaves_no_row(monkeypatch):
    model, optimizer, controller = assembled(policy=adapt.AdaPT(lookback=(4, 4)))
    train(model, optimizer, 3, controller=controller)
    before, masters = copies(model.named_parameters()), copies(controller.masters)

    def fail(*args, **kwargs):
        raise MemoryError

    for _ in range(5):
        loss_of(model, 3).backward()
        controller.observe(1.0)
        with monkeypatch.context() as patch:
            patch.setattr(FixedPointMasters, "accumulate", fail)
            with pytest.raises(MemoryError):
                optimizer.step()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    train(model, optimizer, 9, 3, controller)
    assert controller.trace.step.tolist() == list(range(1, 13))
    assert set(np.flatnonzero(controller.trace.switches().any(axis=1))) <= {3, 7, 11}


def test_a_closure_that_fails_leaves_everything_as_it_was():
    model, optimizer, controller = assembled()
    train(model, optimizer, 3, controller=controller)
    before, masters = copies(dict(model.named_parameters())), copies(controller.masters)

    def closure():
        raise FloatingPointError("no loss today")

    with pytest.raises(FloatingPointError):
        optimizer.step(closure)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    train(model, optimizer, 3, 3, controller)
    assert controller.trace.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert not any(torch.equal(master, masters[name]) for name, master in controller.masters.items())


class Twice(torch.optim.SGD):
    """Looks ahead as SAM does, without its two methods."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        super().step()
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Never(torch.optim.SGD):
    """Takes a closure and does not call it."""

    def step(self, closure=None):
        return super().step()


@pytest.mark.filterwarnings("ignore:the controller never saw:UserWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [(Twice, "Twice evaluated its closure twice in one step"), (Never, "Never made a step without evaluating")],
)
def test_optimizers_that_treat_their_closure_otherwise_are_refused_with_weights_on_the_grid(kind, message):
    model = net()
    optimizer = kind(model.parameters(), lr=0.05)
    controller = adapt.attach(optimizer, model, RESTLESS)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            optimizer.step(closure)
        for name, precision in controller.precisions.items():
            parameter = dict(model.named_parameters())[name]
            assert is_on_grid(parameter, precision)
            assert not torch.equal(parameter, controller.masters[name])


@pytest.mark.parametrize("context", ["master_weights", "evaluation_weights"])
def test_no_step_within_a_context_that_shows_other_weights(context):
    model, optimizer, controller = assembled()
    masters = copies(controller.masters)
    loss_of(model, 0).backward()
    controller.observe(1.0)
    with (
        getattr(controller, context)(),
        pytest.raises(RuntimeError, match=r"optimizer.step\(\) within master_weights\(\).*leave the context"),
    ):
        optimizer.step()
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())
    optimizer.step()


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_step_that_was_interrupted_is_over_for_the_next_without_a_module_too():
    """Without a module no forward pass tells that the step is over; nor does one that leaves the first layer out."""
    model, precision = net(), adapt.Precision(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    controller = adapt.attach(optimizer, dict(model.named_parameters()), adapt.Fixed(precision), rounding="nearest")
    handle = optimizer.register_step_pre_hook(interrupt)
    loss_of(model, 0).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    handle.remove()
    train(model, optimizer, 3, controller=controller)
    assert controller.step == 4
    assert is_on_grid(model[0].weight, precision)
    assert torch.equal(model[2].weight, adapt.quantize(controller.masters["2.weight"], precision))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_step_at_rate_zero_is_one_where_there_are_gradients(with_gradients):
    """torch.distributed.checkpoint makes one without them, to begin the optimizer's state."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    controller = adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(8, 6), normalize_gradients=True))
    (1000 * with_gradients * loss_of(model, 0)).backward()
    optimizer.step(closure=None)
    assert controller.step == with_gradients
    if with_gradients:
        assert optimizer.state[model[0].weight]["momentum_buffer"].norm() == pytest.approx(1)


def test_a_loss_that_changes_after_it_was_shown_counts_as_it_was():
    model, _, controller = assembled(net(), RESTLESS)
    loss = loss_of(model, 0)
    shown = loss.item()
    controller.observe(loss)
    loss /= 4
    loss.backward()
    assert controller.state_dict()["micro_losses"] == [shown]


def test_a_closure_may_answer_a_number_of_numpy():
    model, optimizer, controller = assembled(net(), RESTLESS)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return np.float32(loss.item())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)
    assert controller.trace.step.tolist() == [1]
