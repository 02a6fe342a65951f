"""Calibration sees the batches of training, and training misses none of them."""

import lightning
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from adapt.learned import Budget
from adapt.lightning import LearnedBitwidth
from tests.covering import picked
from tests.lightning.modules import Classifier, ResumableLoader, assert_nothing_attached, data, loader, trainer

BATCHES = 4


def learned(**options):
    return LearnedBitwidth(Budget(bits=4), Budget(bits=4), **options)


class Look(lightning.Callback):
    """Keeps every batch of training, and the range of the inputs as calibration left it."""

    def __init__(self, callback=None):
        self.callback, self.batches, self.range = callback, [], None

    def on_train_batch_start(self, trainer, module, batch, index):
        if self.callback is not None and self.range is None:
            self.range = self.callback.learner.formats["net.0.input"].maximum.item()
        self.batches.append(batch)


def train(module, loaders, callback=None, **options):
    """Train an epoch of a few batches, and answer what was seen."""
    look = Look(callback)
    run = trainer(*filter(None, (callback, look)), **{"max_epochs": 1, "limit_train_batches": BATCHES, **options})
    run.fit(module, loaders)
    return look


def sums(batches):
    return [float(batch[0].sum()) for batch in batches]


# What calibration sees


class Raw(Classifier):
    """Makes of raw bytes what its layers take, on the way to the device."""

    def on_before_batch_transfer(self, batch, index):
        return batch[0].float(), batch[1]

    def on_after_batch_transfer(self, batch, index):
        return batch[0] / 255, batch[1]


def test_batches_go_through_the_hooks_of_transfer():
    raw = torch.randint(0, 256, (24, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = data().tensors[1]
    found = train(Raw(), DataLoader(list(zip(raw, targets, strict=True)), 4), learned())
    expected = train(Classifier(), DataLoader(list(zip(raw.float() / 255, targets, strict=True)), 4), learned())
    assert found.range == expected.range <= 1


class Pairs(Classifier):
    """Takes two inputs by name, each from a loader of its own."""

    def forward(self, left, right):
        return self.net(left + right)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch["left"], batch["right"]), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("mode", [None, "min_size"])
def test_several_loaders_are_combined_as_training_does(mode):
    halves = {"left": DataLoader(data().tensors[0], 4), "right": DataLoader(2 * data().tensors[0], 4)}
    look = train(Pairs(), halves if mode is None else CombinedLoader(halves, mode), learned())
    expected = train(Classifier(), DataLoader([(3 * x, y) for x, y in data()], 4), learned())
    assert look.range == pytest.approx(expected.range)


def test_a_forward_that_takes_none_of_them_is_calibrated_by_the_training_step():
    class Nested(Classifier):
        def training_step(self, batch, index):
            return super().training_step(batch["left"], index)

    callback = learned()
    look = train(Nested(), {"left": loader(), "right": loader()}, callback)
    assert 0 < look.range < float("inf")


# What training sees


class Counting(IterableDataset):
    """Knows where it is, and can go back."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < 40:
            self.next += 1
            yield torch.full((6,), float(self.next)), self.next % 3

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


@pytest.mark.parametrize(
    "make",
    picked(
        {
            "generator": lambda: DataLoader(data(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
            "sampler": lambda: DataLoader(
                data(),
                4,
                sampler=torch.utils.data.RandomSampler(data(), generator=torch.Generator().manual_seed(3)),
            ),
            "global stream": lambda: DataLoader(data(), 4, shuffle=True),
            "persistent workers": lambda: DataLoader(data(), 4, num_workers=1, persistent_workers=True),
            "loader with state": lambda: ResumableLoader(),
            "data with state": lambda: DataLoader(Counting(), 4),
        },
        "global stream",
        "persistent workers",
        "loader with state",
    ),
)
def test_training_sees_the_batches_that_it_sees_without(make):
    torch.manual_seed(5)
    expected = train(Classifier(), make())
    torch.manual_seed(5)
    found = train(Classifier(), make(), learned(calibration=2))
    assert sums(found.batches) == sums(expected.batches)
    assert len(found.batches) == BATCHES


class Once(IterableDataset):
    """A stream."""

    def __init__(self):
        self.stream = iter(data())

    def __iter__(self):
        return self.stream


@pytest.mark.parametrize("make", [lambda: DataLoader(Once(), 4), lambda: iter(loader())], ids=["dataset", "iterator"])
def test_data_that_can_be_read_once_ask_for_batches(make):
    options = {"max_epochs": None, "max_steps": BATCHES, "limit_train_batches": 1.0}
    with pytest.raises(ValueError, match=r"can be read only once, so that .*: give batches by calibration="):
        train(Classifier(), make(), learned(), **options)
    assert_nothing_attached()
    look = train(Classifier(), make(), learned(calibration=[batch[0] for batch in loader()]), **options)
    assert sums(look.batches) == sums(loader())[:BATCHES]
