import dataclasses
import sys

import pytest
import torch

from recipes.common import data
from recipes.mixed_precision.__main__ import main
from tests.recipes.test_data import records


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a small data set in CIFAR-10's layout; its results lie in tmp_path / "out"."""
    small = dataclasses.replace(data.DATA_SETS["cifar10"], train={"data_batch_1.bin": 192}, test={"test_batch.bin": 64})
    monkeypatch.setitem(data.DATA_SETS, "cifar10", small)
    folder = tmp_path / "data" / small.folder
    folder.mkdir(parents=True)
    for seed, (file, number) in enumerate([*small.train.items(), *small.test.items()]):
        (folder / file).write_bytes(records(number, small.label_bounds, seed)[0])
    threads = torch.get_num_threads()

    def run(*arguments):
        fixed = ["--models", "lenet5", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
        fixed += [
            "--no-download",
            "--threads",
            "1",
            "--device",
            "cpu",
            "--start-epochs",
            "1",
            "--epochs",
            "2",
            "--batch-size",
            "32",
            "--subset",
            "0",
        ]
        monkeypatch.setattr(sys, "argv", ["mixed_precision", *fixed, *arguments])
        main()

    yield run
    torch.set_num_threads(threads)
