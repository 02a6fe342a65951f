import pytest

from recipes.mixed_precision.__main__ import main
from tests.recipes.small_runs import write_cifar


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a small data set in CIFAR-10's layout; its results lie in tmp_path / "out"."""
    write_cifar("cifar10", tmp_path / "data", monkeypatch)

    def run(*arguments):
        main([
            "--models", "lenet5", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download",
            "--threads", "1", "--device", "cpu", "--start-epochs", "1", "--epochs", "2", "--batch-size", "32",
            "--subset", "0", *arguments,
        ])  # fmt: skip

    return run
