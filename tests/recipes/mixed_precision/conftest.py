import pytest

from recipes.mixed_precision.__main__ import main
from tests.recipes.small_runs import write_cifar


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a small data set in CIFAR-10's layout; its results lie in tmp_path / "out"."""
    return command_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def all_methods(tmp_path_factory):
    """The folder of a run of every kind of method, at 4 and at 2 bits, with the seed 5."""
    folder = tmp_path_factory.mktemp("all_methods")
    with pytest.MonkeyPatch.context() as patch:
        command_in(folder, patch)("--bits", "4", "2", "--seeds", "5")
    return folder


def command_in(folder, monkeypatch):
    """A function that runs the recipe with its data and results in `folder`."""
    write_cifar("cifar10", folder / "data", monkeypatch)

    def run(*arguments):
        main([
            "--models", "lenet5", "--data", str(folder / "data"), "--out", str(folder / "out"), "--no-download",
            "--threads", "1", "--device", "cpu", "--start-epochs", "1", "--epochs", "2", "--batch-size", "32",
            "--subset", "0", *arguments,
        ])  # fmt: skip

    return run
