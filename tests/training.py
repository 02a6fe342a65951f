"""Small networks in training, and a witness of the weights that their forward passes saw."""

import contextlib
import io

import pytest
import torch
from torch import nn

import adapt

RESTLESS = adapt.AdaPT(lookback=(2, 4), resolution=(8, 16))
"""The paper's rules at a pace at which a few steps see several switches."""

CLIMBING = adapt.MuPPET(steps_per_epoch=2, window=2, violations=1, threshold=(1.0, 0.0, 0.0))
"""MuPPET's rules at a pace at which a few dozen steps climb to float32."""


def net(seed=0):
    """Two layers, one bias each."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Conv1D(nn.Module):
    """A linear layer whose weight is [in, out], as transformers' module of this name."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def assembled(model=None, policy=RESTLESS, *, lr=0.05, **options):
    """A network, plain SGD for it, and a controller."""
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, adapt.attach(optimizer, model, policy, **options)


def copies(tensors):
    """Copies of tensors by name."""
    return {name: tensor.detach().clone() for name, tensor in dict(tensors).items()}


def batch(step, size=4, features=6, classes=3):
    """Inputs [size, features] and targets [size] of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(size, features, generator=generator)
    return inputs, torch.randint(classes, (size,), generator=generator)


def loss_of(model, step):
    """The cross entropy of one batch."""
    inputs, targets = batch(step)
    return nn.functional.cross_entropy(model(inputs), targets)


def train(model, optimizer, steps, first=0, controller=None):
    """The plain loop; shows the loss if there is a controller to show it to."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        if controller is not None:
            controller.observe(loss)
        optimizer.step()


def through_a_file(state):
    """The state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@contextlib.contextmanager
def interrupted_update():
    """Ctrl-C arrives in the update of torch's SGD."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "_init_group", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield


def is_on_grid(values, precision):
    """Whether every value is a multiple of the step inside the range of `precision`."""
    steps = values.detach().double() * 2.0**precision.fraction_length
    inside = (values >= precision.minimum) & (values <= precision.maximum)
    return bool(((steps == steps.round()) & inside).all())


class Witness:
    """Holds every forward pass against the grid: the weights of the layers in and below each module that ran.

    Every trainable weight of the optimizer with two dimensions or more must be on its grid; in evaluation mode it must
    be the master rounded to nearest. In float32 it must be the master.
    """

    def __init__(self, model, controller):
        self.controller, self.passes, self.problems = controller, 0, []
        for module in model.modules():
            # After the pass: no hook that is registered later can still change what it saw.
            module.register_forward_hook(self.look)

    def look(self, module, args, output):
        self.passes += 1
        controller = self.controller
        names = {id(parameter): name for name, parameter in controller.layers.items()}
        members = {id(p) for group in controller.optimizer.param_groups for p in group["params"]}
        for owner in module.modules():
            for parameter in owner.parameters(recurse=False):
                if parameter.ndim >= 2 and parameter.requires_grad and id(parameter) in members:
                    self.judge(parameter, names.get(id(parameter)), owner.training)

    def judge(self, parameter, name, training):
        if name is None:
            self.problems.append(f"a layer of shape {tuple(parameter.shape)} that is not quantised")
            return
        precision = self.controller.precisions[name]
        if precision is None:
            if not torch.equal(parameter, self.controller.masters[name]):
                self.problems.append(f"{name} in float32, but not its master")
            return
        if not is_on_grid(parameter, precision):
            self.problems.append(f"{name} off the grid")
        if not training and not torch.equal(parameter, adapt.quantize(self.controller.masters[name], precision)):
            self.problems.append(f"{name} not rounded to nearest in evaluation")

    def check(self, passes=1):
        """Fail unless at least so many passes were seen, all on the grid, of weights that masters stand behind."""
        assert not self.problems, self.problems[:5]
        assert self.passes >= passes
        for name, master in self.controller.masters.items():
            precision = self.controller.precisions[name]
            assert precision is None or not is_on_grid(master, precision), f"the master of {name} is on the grid"
