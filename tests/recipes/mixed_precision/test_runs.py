import json
import shutil

import numpy as np
import pytest
import torch

from adapt.learned import Widths
from recipes.common import ledger
from recipes.common.models import MODELS
from recipes.mixed_precision.__main__ import main
from recipes.mixed_precision.methods import METHODS, TuningSettings, chosen, kind_of, phases, rate
from recipes.mixed_precision.runs import input_sizes
from tests.covering import picked
from tests.recipes.small_runs import count_epochs, interrupt, timeless

pytestmark = pytest.mark.filterwarnings("ignore:no bit width moved")  # in so few steps

WEIGHTS = 61_770  # of LeNet-5's convolutions and dense layers
BIASES = 236
INPUTS = 3 * 32 * 32 + 6 * 14 * 14 + 400 + 120 + 84


def lines(folder, name="out"):
    return ledger.read(folder / name / "mixed_precision.jsonl")


def test_runs_of_a_seed_share_their_start_and_leave_a_line_each(all_methods):
    start, *found = lines(all_methods)
    assert start["settings"]["epochs"] == 1
    assert [line["settings"]["method"] for line in found] == [
        "float32", "lsq4", "learned4", "lsq2", "learned2", "compact",
    ]  # fmt: skip
    for line in found:
        assert line["settings"]["start_epochs"] == 1
        assert line["accuracy"] == line["history"][-1]["accuracy"]
        assert len(line["history"]) == 2
        assert str(all_methods) not in json.dumps(line)
    (kept,) = (all_methods / "out" / "runs").iterdir()
    assert kept.name.startswith("cifar10-lenet5-float32-5-")


def test_sizes_are_counted_for_all_methods_alike(all_methods):
    sizes = {line["settings"]["method"]: line for line in lines(all_methods)[1:]}
    for name, bits in (("float32", 32), ("lsq4", 4), ("lsq2", 2)):
        assert sizes[name]["weight_kilobytes"] == pytest.approx((WEIGHTS + BIASES) * bits / 8000)
        assert sizes[name]["activation_kilobytes"] == pytest.approx(INPUTS * bits / 8000)
    for bits in (4, 2):
        for what in ("weight_kilobytes", "activation_kilobytes"):
            ratio = sizes[f"learned{bits}"][what] / sizes[f"lsq{bits}"][what]
            assert 0.9 < ratio <= 1 + 1e-9, (bits, what)
    compact = sizes["compact"]["layers"]
    for name, layer in compact.items():
        assert layer["weight_bits"] == (32 if name.endswith("bias") else round(layer["weight_bits"]))
        if "inputs" in layer:
            assert layer["input_bits"] == 8


def test_learned_widths_are_kept_by_channel(command, tmp_path):
    command("--methods", "learned", "--bits", "3", "--seeds", "0")
    line = lines(tmp_path)[-1]
    widths = Widths.load(tmp_path / "out" / line["widths"])
    for name, layer in line["layers"].items():
        assert layer["weight_bits"] == pytest.approx(widths.of(name)[-1].mean())
        if "inputs" in layer:
            assert widths.of(f"{name}.input")[-1].tolist() == [layer["input_bits"]]
            assert widths.sizes(f"{name}.input").tolist() == [layer["inputs"]]
    assert [phase["phase"] for phase in line["phases"]][:2] == ["pretraining", "learning"]
    size = float(widths.word_length[-1] @ widths.numel) / 8000
    assert size == pytest.approx(line["weight_kilobytes"] + line["activation_kilobytes"])


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v2-quarter"])
def test_inputs_are_those_that_the_layers_meet(name):
    model = MODELS[name](10, (3, 32, 32))
    found = input_sizes(model, torch.zeros(1, 3, 32, 32))
    assert set(found) == {key for key, p in model.named_parameters() if p.ndim > 1}
    first, *_, last = found.values()
    assert (first, last) == (3 * 32 * 32, {"resnet20": 64, "mobilenet-v2-quarter": 320}[name])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_finished_runs_are_skipped_and_new_ones_made(command, tmp_path, monkeypatch, capsys):
    command("--methods", "float32", "lsq", "--bits", "4", "--seeds", "0")
    assert capsys.readouterr().out.count("accuracy 0.") == 2
    before = lines(tmp_path)
    made = []
    monkeypatch.setattr(
        "recipes.mixed_precision.__main__.finish",
        lambda settings, *_, **__: (
            made.append(settings) or {"accuracy": 0, "seconds": 0, "weight_kilobytes": 0, "activation_kilobytes": 0}
        ),
    )
    command("--methods", "float32", "lsq", "--bits", "4", "--seeds", "0", "1")
    assert [(settings.method, settings.seed) for settings in made] == [("float32", 1), ("lsq4", 1)]
    assert capsys.readouterr().out.count("already finished") == 2
    for changes in (["--epochs", "3"], ["--subset", "64"], ["--start-epochs", "2"], ["--batch-size", "16"]):
        made.clear()
        command("--methods", "float32", "--seeds", "0", *changes)
        assert len(made) == 1, changes
    assert lines(tmp_path) == before


def test_a_start_is_trained_once_and_told_once(command, tmp_path, monkeypatch):
    command("--methods", "float32", "--seeds", "0")
    epochs = count_epochs(monkeypatch)
    command("--methods", "lsq", "--bits", "4", "--seeds", "0")
    assert len(epochs) == 2
    # A start that was told of but lost is trained again, and nothing else changes.
    shutil.rmtree(tmp_path / "out" / "runs")
    command("--methods", "compact", "--seeds", "0")
    assert len(epochs) == 5
    assert [line["settings"]["method"] for line in lines(tmp_path)] == ["float32", "float32", "lsq4", "compact"]


@pytest.mark.parametrize(
    "arguments",
    picked({"learned": ["learned", "--bits", "3"], "lsq": ["lsq", "--bits", "4"], "compact": ["compact"]}, "learned"),
)
def test_a_run_that_was_cut_goes_on_and_ends_the_same(command, tmp_path, monkeypatch, arguments):
    arguments = ["--methods", *arguments, "--seeds", "0", "--epochs", "3"]
    command(*arguments)
    expected = lines(tmp_path)
    (tmp_path / "out").rename(tmp_path / "uncut")
    interrupt(monkeypatch, lambda: command(*arguments), epoch=3)  # the second epoch of the tuning
    assert len(lines(tmp_path)) == 1
    epochs = count_epochs(monkeypatch)
    command(*arguments)
    assert len(epochs) == 2
    assert [timeless(line) for line in lines(tmp_path)] == [timeless(line) for line in expected]
    if expected[-1]["widths"]:
        ours, theirs = (Widths.load(tmp_path / place / expected[-1]["widths"]) for place in ("out", "uncut"))
        assert np.array_equal(ours.word_length, theirs.word_length)


def test_the_command_of_a_line_makes_the_same_line(command, tmp_path):
    command("--methods", "learned", "--bits", "3", "--seeds", "2")
    words = lines(tmp_path)[-1]["provenance"]["command"].split()
    assert words[:3] == ["python", "-m", "recipes.mixed_precision"]
    main([*words[3:], "--data", str(tmp_path / "data"), "--out", str(tmp_path / "again"), "--no-download"])
    assert list(map(timeless, lines(tmp_path, "again"))) == list(map(timeless, lines(tmp_path)))


def test_every_method_has_a_policy_of_its_name():
    assert chosen(("compact", "learned", "float32", "lsq"), (3, 4)) == [
        "float32", "learned3", "lsq3", "learned4", "lsq4", "compact",
    ]  # fmt: skip
    assert kind_of("float32") == ("float32", 32)
    kinds = {"lsq": "FixedWidths", "learned": "LearnedWidths", "compact": "AdaPT"}
    for name in METHODS:
        settings = TuningSettings(model="resnet20", method=name)
        kind, bits = kind_of(name)
        if kind == "float32":
            assert settings.policy(100) is None
            continue
        decided = settings.identity(390)["policy"]
        assert decided["name"] == kinds[kind]
        if kind == "lsq":
            assert decided["weight_bits"] == decided["activation_bits"] == bits
        if kind == "learned":
            assert decided["weight_budget"] == decided["activation_budget"] == {"kilobytes": None, "bits": bits}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 585])
def test_phases_fill_the_steps_and_one_cosine_goes_over_all_of_them(steps):
    assert phases(steps).total == steps
    shares = [rate(steps, step) for step in range(steps + 1)]
    assert all(0 < share <= 1 for share in shares[:steps])
    assert max(shares) == 1
    if steps == 585:
        assert torch.tensor(shares[:24]).diff().min() > 0
        assert torch.tensor(shares[23:585]).diff().max() <= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "muppet"], "methods must be of float32, compact, lsq, learned, got 'muppet'"),
        (["--bits", "1"], "bits must lie between 2 and 8, got 1"),
        (["--models", "resnet9"], "model must be one of .*resnet20, .*, got 'resnet9'"),
        (["--epochs", "0"], "epochs must be above 0, got 0"),
        (["--subset", "1000"], "subset must lie between 1 and the 192 pictures, got 1000"),
        (["--batch-size", "1000"], "batch_size must lie between 1 and the 192 pictures, got 1000"),
        (["--seeds", "-1"], "seed must not be negative"),
        (["--data", "nowhere"], "nowhere lacks"),
        (["report"], "holds no results yet: train first"),
    ],
)
def test_what_cannot_be_ends_in_one_sentence(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)
    assert lines(tmp_path) == []
