"""Whose loss is whose, with several optimizers."""

import pytest
import torch
from torch import nn

from adapt.lightning.losses import Losses


class Listener:
    """Stands in for a controller."""

    def __init__(self, module):
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        self.heard = []

    def observe(self, loss):
        self.heard.append(float(loss.detach()))

    def forget_losses(self):
        self.heard.clear()


class Room:
    """Two networks with an optimizer each, and a third optimizer to which nobody listens."""

    def __init__(self):
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(2, 2) for _ in range(3))
        self.a, self.b = Listener(self.first), Listener(self.second)
        self.other = torch.optim.SGD(self.third.parameters(), lr=0.1)
        self.losses = Losses([self.a.optimizer, self.other, self.b.optimizer], [self.a, self.b])

    def backward(self, *modules):
        """A loss through these modules; answers its value."""
        values = torch.randn(3, 2)
        for module in modules:
            values = module(values)
        loss = values.square().mean()
        self.losses.before_backward(loss)
        loss.backward()
        self.losses.after_backward()
        return float(loss.detach())

    def step(self, optimizer, clear=True):
        """Answers what was shown for this step."""
        self.losses.before_step(optimizer)
        optimizer.step()
        if clear:
            optimizer.zero_grad()
        shown = [list(listener.heard) for listener in (self.a, self.b)]
        self.a.heard.clear()
        self.b.heard.clear()
        return shown


@pytest.fixture
def room():
    return Room()


def test_each_its_own(room):
    first = room.backward(room.first)
    assert room.step(room.a.optimizer) == [[first], []]
    second = room.backward(room.second)
    assert room.step(room.b.optimizer) == [[], [second]]


def test_both_backward_passes_before_both_steps_in_either_order(room):
    first, second = room.backward(room.first), room.backward(room.second)
    assert room.step(room.b.optimizer) == [[], [second]]
    assert room.step(room.a.optimizer) == [[first], []]


def test_a_shared_loss_is_shown_to_both(room):
    loss = room.backward(room.first, room.second)
    assert room.step(room.a.optimizer) == [[loss], []]
    assert room.step(room.b.optimizer) == [[], [loss]]


def test_a_loss_through_a_toggled_network_is_not_its_own(room):
    room.second.requires_grad_(False)
    loss = room.backward(room.first, room.second)
    room.second.requires_grad_(True)
    assert room.step(room.a.optimizer) == [[loss], []]
    assert room.step(room.b.optimizer, clear=False) == [[], []]


def test_gradients_that_are_cleared_take_their_losses_with_them(room):
    room.backward(room.first, room.second)
    room.step(room.a.optimizer)
    room.b.optimizer.zero_grad()
    second = room.backward(room.second)
    assert room.step(room.b.optimizer) == [[], [second]]


def test_micro_batches_add_up(room):
    losses = [room.backward(room.first) for _ in range(3)]
    assert room.step(room.a.optimizer) == [losses, []]
    assert room.step(room.a.optimizer) == [[], []]


def test_gradients_that_stay_after_a_step_do_not_show_its_loss_again(room):
    room.backward(room.first)
    room.step(room.a.optimizer, clear=False)
    again = room.backward(room.first)
    assert room.step(room.a.optimizer) == [[again], []]


def test_an_optimizer_without_a_controller_keeps_its_losses_to_itself(room):
    room.backward(room.third)
    assert room.step(room.other) == [[], []]
    assert room.step(room.a.optimizer) == [[], []]


def test_losses_of_an_optimizer_that_has_not_stepped_for_long_do_not_pile_up(room):
    for _ in range(5000):
        loss = torch.zeros((), requires_grad=True)
        room.losses.before_backward(loss)
        room.first.weight.grad = torch.zeros_like(room.first.weight)
        room.losses.after_backward()
    ((*shown,), others) = room.step(room.a.optimizer)
    assert len(shown) == 4096
    assert not others


def test_alone_every_loss_is_shown_at_once_and_forgotten_with_its_gradients():
    net = nn.Linear(2, 2)
    listener = Listener(net)
    losses = Losses([listener.optimizer], [listener])
    for value in (1.0, 2.0):
        losses.before_backward(torch.tensor(value))
        net(torch.ones(1, 2)).sum().backward()
        losses.after_backward()
    losses.before_step(listener.optimizer)
    assert listener.heard == [1.0, 2.0]
    listener.optimizer.zero_grad()
    losses.before_backward(torch.tensor(3.0))
    assert listener.heard == [3.0]
