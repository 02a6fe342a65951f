import dataclasses
import sys

import pytest
import torch

from recipes.adapt_tables.__main__ import main
from recipes.common import data
from tests.recipes.test_data import records, write_mnist

CIFAR = {
    "cifar10": ({"data_batch_1.bin": 192}, {"test_batch.bin": 64}),
    "cifar100": ({"train.bin": 192}, {"test.bin": 64}),
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on small data sets in the official layouts; its results lie in tmp_path / "out"."""
    for name, (train, test) in CIFAR.items():
        small = dataclasses.replace(data.DATA_SETS[name], train=train, test=test)
        monkeypatch.setitem(data.DATA_SETS, name, small)
        folder = tmp_path / "data" / small.folder
        folder.mkdir(parents=True)
        for seed, (file, number) in enumerate([*train.items(), *test.items()]):
            (folder / file).write_bytes(records(number, small.label_bounds, seed)[0])
    for name in ("mnist", "fashion-mnist"):
        monkeypatch.setitem(data.DATA_SETS, name, dataclasses.replace(data.DATA_SETS[name], numbers=(192, 64)))
        write_mnist(tmp_path / "data" / name, (192, 64))
    threads = torch.get_num_threads()

    def run(what, *arguments):
        fixed = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download", "--threads", "1"]
        fixed += ["--device", "cpu", "--epochs", "2", "--batch-size", "64"]
        monkeypatch.setattr(sys, "argv", ["adapt_tables", what, *fixed, *arguments])
        main()

    yield run
    torch.set_num_threads(threads)
