"""Small networks with learned formats in training."""

import numpy as np
import torch
from torch import nn

from adapt.learned import Budget, Phases, attach, attach_lsq
from adapt.learned.quantizer import range_gradients

PHASES = Phases(6, 24, 10)


class Convolutional(nn.Module):
    """Every kind of layer that is quantised channel by channel, on pictures [batch, 3, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.grouped(self.depthwise(x)))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


class Reader(nn.Module):
    """An embedding, attention and a linear layer, on words [batch, 5]."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words):
        x = self.words(words)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x.mean(1))


def pictures(step, size=8):
    """Inputs [size, 3, 8, 8] and targets [size] of one step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(3, (size,), generator=generator)


def build(seed=0):
    """The convolutional network and plain SGD for it."""
    torch.manual_seed(seed)
    model = Convolutional()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def learning(model=None, optimizer=None, *, bits=4.0, **options):
    """A network with learned widths: model, optimizer, learner."""
    if model is None:
        model, optimizer = build()
    options = {
        "weight_budget": Budget(bits=bits),
        "activation_budget": Budget(bits=bits),
        "phases": PHASES,
        "update_every": 3,
        **options,
    }
    return model, optimizer, attach(optimizer, model, [pictures(900)[0], pictures(901)[0]], **options)


def given(bits=4, **options):
    """A network under LSQ: model, optimizer, learner."""
    model, optimizer = build()
    calibration = [pictures(900)[0]]
    return model, optimizer, attach_lsq(optimizer, model, calibration, weight_bits=bits, **options)


def train(model, optimizer, steps, first=0, data=pictures):
    """The plain loop."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        inputs, targets = data(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def gradient_sums(learner):
    """What backward passes have told every format since its last update, [channels, 4], by tensor: see `SUMS`."""
    widths = learner.widths
    sums = learner.state_dict()["formats"]["sums"].split(widths.channels.tolist())
    return dict(zip(widths.names, sums, strict=True))


def gradients_of_formats(learner, sums, name, floor=2):
    """The gradients with respect to d and q₊ that these sums of a tensor mean, each [channels]."""
    site = name.replace(".weight.input", ".input")
    step, maximum = (torch.from_numpy(values[site]).double() for values in (learner.steps, learner.ranges))
    signed = torch.from_numpy(np.atleast_1d(learner.formats[site].signed))
    return range_gradients(tuple(sums[:, :3].unbind(1)), step, maximum, signed, floor=floor)


def on_grid(values, step):
    """Whether all values are multiples of the step."""
    quotient = values.double() / step
    return bool(((quotient - quotient.round()).abs() < 1e-3).all())
