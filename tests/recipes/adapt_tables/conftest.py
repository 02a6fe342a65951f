import dataclasses
import sys

import pytest
import torch

from recipes.adapt_tables.__main__ import main
from recipes.common import data
from tests.recipes.test_data import records


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a small data set in CIFAR-10's layout; its results lie in tmp_path / "out"."""
    small = dataclasses.replace(data.DATA_SETS["cifar10"], train={"data_batch_1.bin": 192}, test={"test_batch.bin": 64})
    monkeypatch.setitem(data.DATA_SETS, "cifar10", small)
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for seed, (name, number) in enumerate([*small.train.items(), *small.test.items()]):
        (folder / name).write_bytes(records(number, (10,), seed)[0])
    threads = torch.get_num_threads()

    def run(what, *arguments):
        fixed = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download", "--threads", "1"]
        fixed += ["--device", "cpu", "--epochs", "2", "--batch-size", "64"]
        monkeypatch.setattr(sys, "argv", ["adapt_tables", what, *fixed, *arguments])
        main()

    yield run
    torch.set_num_threads(threads)
