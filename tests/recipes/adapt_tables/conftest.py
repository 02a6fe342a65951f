import dataclasses

import pytest

from recipes.adapt_tables.__main__ import main
from recipes.common import data
from tests.recipes.small_runs import CIFAR, write_cifar
from tests.recipes.test_data import write_mnist


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on small data sets in the official layouts; its results lie in tmp_path / "out"."""
    for name in CIFAR:
        write_cifar(name, tmp_path / "data", monkeypatch)
    for name in ("mnist", "fashion-mnist"):
        monkeypatch.setitem(data.DATA_SETS, name, dataclasses.replace(data.DATA_SETS[name], numbers=(192, 64)))
        write_mnist(tmp_path / "data" / name, (192, 64))

    def run(what, *arguments):
        main([
            what, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download", "--threads", "1",
            "--device", "cpu", "--epochs", "2", "--batch-size", "64", *arguments,
        ])  # fmt: skip

    return run
