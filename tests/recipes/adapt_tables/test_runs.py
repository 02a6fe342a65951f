import json

import numpy as np
import pytest

import adapt
from recipes.adapt_tables.__main__ import main
from recipes.adapt_tables.rows import ROWS
from recipes.common import ledger
from recipes.common.classification import ClassifierSettings, recommended
from recipes.common.methods import METHODS
from tests.recipes.small_runs import count_epochs, interrupt, timeless


def lines(tmp_path):
    return ledger.read(tmp_path / "out" / "adapt_tables.jsonl")


def test_a_row_leaves_a_line_per_run_and_nothing_half_done(command, tmp_path, capsys):
    command("cifar10-lenet5", "--methods", "float32", "adapt", "fixed8", "--seeds", "0", "3")
    found = lines(tmp_path)
    assert [(line["settings"]["seed"], line["settings"]["method"]) for line in found] == [
        (seed, name) for seed in (0, 3) for name in ("float32", "adapt", "fixed8")
    ]
    for line in found:
        assert line["accuracy"] == line["history"][-1]["accuracy"]
        assert len(line["history"]) == 2
        assert line["performance"].keys() == {"paper", "physical", "printed"}
        assert [layer["weights"] for layer in line["layers"].values()] == [450, 2400, 48_000, 10_080, 840]
        assert str(tmp_path) not in json.dumps(line)
        assert line["trace"] is None or (tmp_path / "out" / line["trace"]).is_file()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"adapt_tables.jsonl", "runs", "traces"}
    assert not list((tmp_path / "out" / "runs").iterdir())
    assert "6 of 6: cifar10 lenet5 fixed8, seed 3" in capsys.readouterr().out


def test_a_line_says_what_was_run_and_what_came_out(command, tmp_path):
    command("cifar10-lenet5", "--methods", "adapt-nearest", "--seeds", "1", "--subset", "128")
    (line,) = lines(tmp_path)
    assert line["rounding"] == "nearest"
    assert line["policy"] == {"name": "AdaPT"}
    assert line["hyperparameters"]["buffer_bits"] == 4
    assert line["settings"]["subset"] == 128
    trace = adapt.Trace.load(tmp_path / "out" / line["trace"])
    assert trace.step[-1] == 4
    weights = np.array([layer["weights"] for layer in line["layers"].values()])
    lengths = np.array([layer["word_length"] for layer in line["layers"].values()])
    shares = np.array([layer["nonzero"] for layer in line["layers"].values()])
    assert lengths.tolist() == trace.word_length[-1].tolist()
    size = float((lengths * shares) @ weights / weights.sum() / 32)
    assert line["performance"]["paper"]["size_ratio"] == pytest.approx(size, rel=1e-4)
    assert line["history"][-1]["training_speedup"] == pytest.approx(line["performance"]["paper"]["training_speedup"])
    assert line["history"][0]["training_speedup"] > 0
    assert line["performance"]["paper"]["training_speedup"] > line["performance"]["physical"]["training_speedup"]


def test_the_command_of_a_line_makes_the_same_line(command, tmp_path):
    command("cifar10-lenet5", "--methods", "adapt", "--seeds", "2", "--subset", "128")
    (first,) = lines(tmp_path)
    words = first["provenance"]["command"].split()
    assert words[:3] == ["python", "-m", "recipes.adapt_tables"]
    main([*words[3:], "--data", str(tmp_path / "data"), "--out", str(tmp_path / "again"), "--no-download"])
    (second,) = ledger.read(tmp_path / "again" / "adapt_tables.jsonl")
    assert timeless(second) == timeless(first)


def test_finished_runs_are_skipped_and_new_ones_made(command, tmp_path, monkeypatch, capsys):
    command("cifar10-lenet5", "--methods", "float32", "adapt", "--seeds", "0")
    before = lines(tmp_path)
    made = []
    monkeypatch.setattr(
        "recipes.adapt_tables.__main__.finish",
        lambda settings, *_, **__: made.append(settings) or {"accuracy": 0, "seconds": 0},
    )
    command("cifar10-lenet5", "--methods", "float32", "adapt", "--seeds", "0", "1")
    assert [(settings.method, settings.seed) for settings in made] == [("float32", 1), ("adapt", 1)]
    assert capsys.readouterr().out.count("already finished") == 2
    for changes in (["--epochs", "3"], ["--subset", "64"], ["--schedule", "plateau"], ["--batch-size", "32"]):
        made.clear()
        command("cifar10-lenet5", "--methods", "adapt", "--seeds", "0", *changes)
        assert len(made) == 1, changes
    assert lines(tmp_path) == before


def test_a_run_of_another_policy_is_not_taken_for_this_one(command, tmp_path, monkeypatch):
    command("cifar10-lenet5", "--methods", "adapt", "--seeds", "0")
    settings = ClassifierSettings(
        data_set="cifar10", model="lenet5", method="adapt", epochs=2, batch_size=64, **recommended("lenet5", "adapt")
    )
    assert ledger.is_finished(lines(tmp_path), settings.identity(3))
    monkeypatch.setitem(METHODS, "adapt", METHODS["adapt-tolerance-1"])
    assert not ledger.is_finished(lines(tmp_path), settings.identity(3))


def test_a_run_that_was_cut_goes_on_and_ends_the_same(command, tmp_path, monkeypatch):
    arguments = ("cifar10-lenet5", "--methods", "adapt", "--seeds", "0", "--epochs", "3")
    command(*arguments)
    (expected,) = lines(tmp_path)
    (tmp_path / "out").rename(tmp_path / "uncut")

    interrupt(monkeypatch, lambda: command(*arguments), epoch=2)
    assert lines(tmp_path) == []
    assert len(list((tmp_path / "out" / "runs").glob("*/checkpoint.pt"))) == 1

    epochs = count_epochs(monkeypatch)
    command(*arguments)
    (line,) = lines(tmp_path)
    assert len(epochs) == 2
    assert timeless(line) == timeless(expected)


def test_the_rows_are_those_of_the_paper_and_their_methods_exist():
    for name in ("cifar10-alexnet", "cifar10-resnet20", "cifar100-alexnet", "cifar100-resnet20"):
        assert name in ROWS
    for row in ROWS.values():
        assert set(row.methods) <= set(METHODS)
        assert {"float32", "adapt"} <= set(row.methods)


@pytest.mark.long
def test_all_rows_can_be_run_by_one_command(command, tmp_path):
    command("all", "--methods", "adapt", "--seeds", "0", "--epochs", "1", "--subset", "64")
    assert ["-".join((line["settings"]["data_set"], line["settings"]["model"])) for line in lines(tmp_path)] == list(
        ROWS
    )
    for line in lines(tmp_path):
        wide = line["settings"]["model"] == "resnet20" or line["settings"]["data_set"] == "cifar100"
        assert line["hyperparameters"]["buffer_bits"] == (8 if wide else 4)
        *_, head = line["layers"].values()
        classes = 100 if line["settings"]["data_set"] == "cifar100" else 10
        assert (
            head["weights"]
            == head["operations"]
            == classes * {"resnet20": 64, "alexnet": 1024, "lenet5": 84}[line["settings"]["model"]]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "muppet9"], "method must be one of float32, adapt"),
        (["--subset", "1000"], "subset must lie between 1 and the 192 pictures, got 1000"),
        (["--batch-size", "1000"], "batch_size must lie between 1 and the 192 pictures, got 1000"),
        (["--seeds", "-1"], "seed must not be negative"),
        (["--data", "nowhere"], "nowhere lacks"),
    ],
)
def test_what_cannot_be_ends_in_one_sentence(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        command("cifar10-lenet5", *arguments)
    assert "\n" not in str(caught.value)
    assert lines(tmp_path) == []


def test_muppet_knows_the_steps_of_an_epoch_of_the_subset(command, tmp_path):
    command("cifar10-lenet5", "--methods", "muppet", "--seeds", "0", "--subset", "130")
    (line,) = lines(tmp_path)
    assert line["policy"] == {"name": "MuPPET", "steps_per_epoch": 2}
    assert {layer["word_length"] for layer in line["layers"].values()} == {8}
