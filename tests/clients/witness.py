"""What every real run in a host has to show."""

import warnings
from contextlib import contextmanager

import torch
from torch import nn


def check(controller, witness=None):
    """The loss was seen, formats moved and, where a witness looked, every pass was on the grid."""
    assert controller.step > 20
    assert controller.trace.switches().any(), "no format moved"
    assert controller.state_dict()["state"]["losses"], "no loss was seen"
    if witness is not None:
        witness.check(controller.step)


def same(model, other):
    """Every parameter and buffer is the same to the bit."""
    states = model.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def network(features=8, classes=2):
    """A small classifier, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, classes))


def rows(count=256, features=8):
    """Inputs [count, features] and targets of two classes, always the same."""
    inputs = torch.randn(count, features, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())


def loader(size=16):
    """The rows in their order."""
    return torch.utils.data.DataLoader(rows(), size)


@contextmanager
def nothing_misleading():
    """Fail where adapt warns of anything: all is as it should be."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told = [str(w.message) for w in caught if "adapt" in w.filename or "the controller" in str(w.message)]
    assert not told, told
