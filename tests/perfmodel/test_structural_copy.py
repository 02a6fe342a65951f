"""Which objects of a module are copied, because forward may write into them, and which are shared."""

import enum
from argparse import Namespace
from collections import OrderedDict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adapt.perfmodel import activation_sizes, operations
from tests.perfmodel.devices import Only

T = TypeVar("T")


@pytest.fixture(params=["meta", "real"])
def device(request):
    """The device on which the copy has to run."""
    return request.param


class Remembering(nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.layer, self.memory = nn.Linear(3, 4), memory

    def forward(self, x):
        y = self.layer(x)
        if self.memory.h is not None:
            y = y + self.memory.h
        self.memory.h = y.detach().mean(0)
        return y


class State:
    h = None


@dataclass
class Data:
    h: Any = None
    seen: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Slots:
    h: Any = None


class Guarded(Generic[T]):
    def __init__(self, h):
        self.inner = {"h": h}

    @property
    def h(self):
        return self.inner["h"]

    @h.setter
    def h(self, value):
        self.inner["h"] = value


class Attributes(dict):
    def __getattr__(self, name):
        return self[name] if name in self else super().__getattribute__(name)

    def __setattr__(self, name, value):
        self[name] = value


class Items(list):
    h = None


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimpleNamespace(h=None),
        lambda: Namespace(h=None),
        State,
        Data,
        Slots,
        lambda: Slots(torch.ones(4)),
        lambda: Guarded[int](None),
        lambda: Guarded(torch.ones(4)),
        lambda: Attributes(h=None),
        Items,
    ],
)
def test_an_object_that_forward_writes_into_stays_as_it_was(make, device):
    model = Remembering(make())
    before = model.memory.h
    assert operations(Only(device, model), torch.rand(2, 3)) == {"layer.weight": 12}
    assert activation_sizes(Only(device, model), torch.rand(2, 3)) == {"layer": 4}
    assert model.memory.h is before
    assert before is None or torch.equal(before, torch.ones(4))
    model(torch.rand(2, 3))
    assert model(torch.rand(2, 3)).device.type == "cpu"


class Holder:
    def __init__(self, *modules):
        self.modules, self.owner = modules, None

    def run(self, x):
        for module in self.modules:
            x = module(x)
        return x


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.holder = SimpleNamespace(steps=[Holder(self.net[0]), Holder(*self.net[1:])])
        self.holder.steps[0].owner = self
        self.again = self.holder

    def forward(self, x):
        assert self.again is self.holder
        assert self.holder.steps[0].owner is self
        for step in self.holder.steps:
            x = step.run(x)
        return x


def test_modules_are_found_through_the_objects_that_hold_them(device):
    model = Holding()
    assert operations(Only(device, model), torch.rand(2, 3)) == {"net.0.weight": 12, "net.2.weight": 8}
    assert activation_sizes(Only(device, model), torch.rand(2, 3)) == {"net.0": 4, "net.2": 2}
    assert model.net[1].num_batches_tracked == 0


class Mode(enum.Enum):
    FAST = 1


class Single:
    def __new__(cls):
        return super().__new__(cls)


class File:
    def __del__(self):
        pass


class Loader(DataLoader):
    pass


class Registry(OrderedDict):
    pass


MARK = object()


@pytest.mark.parametrize(
    "other", [Mode.FAST, Single(), File(), Loader(TensorDataset(torch.rand(2, 3))), Registry(), MARK, State, torch]
)
def test_library_objects_and_sentinels_are_shared(other, device):
    class Referring(nn.Linear):
        def forward(self, x):
            assert self.other is other
            return super().forward(x)

    model = Referring(3, 4)
    model.other = other
    assert operations(Only(device, model), torch.rand(2, 3)) == {"weight": 12}
