import json
import sys

import pytest

import adapt
from recipes.cifar10.__main__ import main
from tests.recipes.small_runs import write_cifar


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a small archive in CIFAR-10's layout; its folder is tmp_path."""
    write_cifar("cifar10", tmp_path / "data", monkeypatch)

    def run(*arguments):
        arguments = [
            "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download", "--threads", "1",
            "--device", "cpu", "--model", "lenet5", "--epochs", "2", "--batch-size", "64", *arguments,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["cifar10", *arguments])  # the result names the command
        main()

    return run


@pytest.mark.parametrize("method", ["adapt", "float32"])
def test_the_recipe_trains_and_writes_everything(command, tmp_path, capsys, method):
    command("--method", method, "--seed", "3")
    out = capsys.readouterr().out
    assert f"lenet5 {method}" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["seed"] == 3
    assert result["settings"]["buffer_bits"] == 4
    assert f"--method {method} --seed 3" in result["command"]
    assert [epoch["accuracy"] for epoch in result["history"]][-1] == result["accuracy"]
    assert result["parameters"] == 62_006
    assert (tmp_path / "out" / "trace.npz").exists() == (method != "float32")
    if method != "float32":
        trace = adapt.Trace.load(tmp_path / "out" / "trace.npz")
        assert len(trace.layers) == 5
        assert trace.step[-1] == 6


def test_the_same_command_again_goes_on_and_gives_the_same(command, tmp_path):
    command()
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    command()
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == first


def test_a_subset_and_a_plateau_can_be_asked_for(command, tmp_path):
    command("--subset", "128", "--schedule", "plateau", "--lr", "0.01", "--l1", "1e-5")
    settings = json.loads((tmp_path / "out" / "result.json").read_text())["settings"]
    assert (settings["subset"], settings["schedule"], settings["lr"], settings["l1"]) == (128, "plateau", 0.01, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "muppet9"], "method must be one of float32, adapt"),
        (["--batch-size", "1000"], "batch_size must lie between 1 and the 192 pictures, got 1000"),
        (["--subset", "0"], "subset must lie between 1 and the 192 pictures, got 0"),
        (["--data", "nowhere"], r"nowhere lacks .*put the folder cifar-10-batches-bin or the archive"),
    ],
)
def test_what_cannot_be_ends_in_one_sentence(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named(command, tmp_path):
    path = tmp_path / "data" / "cifar-10-batches-bin" / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=r"data_batch_1\.bin has \d+ bytes instead of"):
        command()
