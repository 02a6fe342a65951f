"""What the tests of several recipes share: small data sets, runs that are cut off, lines without their times."""

import dataclasses

import pytest

from recipes.common import data, training
from tests.recipes.test_data import records

CIFAR = {
    "cifar10": ({"data_batch_1.bin": 192}, {"test_batch.bin": 64}),
    "cifar100": ({"train.bin": 192}, {"test.bin": 64}),
}


def write_cifar(name, folder, monkeypatch):
    """Replace a CIFAR data set by 192 training and 64 test pictures of noise in its official layout below `folder`."""
    train, test = CIFAR[name]
    small = dataclasses.replace(data.DATA_SETS[name], train=train, test=test)
    monkeypatch.setitem(data.DATA_SETS, name, small)
    (folder / small.folder).mkdir(parents=True)
    for seed, (file, number) in enumerate([*train.items(), *test.items()]):
        (folder / small.folder / file).write_bytes(records(number, small.label_bounds, seed)[0])


def timeless(line):
    """A line of a ledger, or a history, without how long anything took."""
    if isinstance(line, dict):
        return {name: timeless(value) for name, value in line.items() if name not in ("seconds", "processor_seconds")}
    return [timeless(value) for value in line] if isinstance(line, list) else line


def interrupt(monkeypatch, action, *, epoch):
    """Carry out an action whose training is interrupted at the beginning of an epoch, counted from 1."""
    trained, epochs = training.train_epoch, []

    def train_epoch(*given):
        epochs.append(given)
        if len(epochs) == epoch:
            raise KeyboardInterrupt
        return trained(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", train_epoch)
        with pytest.raises(KeyboardInterrupt):
            action()


def count_epochs(monkeypatch):
    """A list that grows by an entry with every epoch that is trained from now on."""
    trained, epochs = training.train_epoch, []
    monkeypatch.setattr(training, "train_epoch", lambda *given: epochs.append(1) or trained(*given))
    return epochs
