import dataclasses
import json

import numpy as np
import pytest
import torch

from recipes.cifar10.__main__ import write
from recipes.common import training
from recipes.common.batches import Batches
from recipes.common.classification import ClassifierSettings, evaluate, make_schedule, train
from recipes.common.costs import costs, table
from recipes.common.data import digits
from tests.recipes.small_runs import interrupt, timeless

SETTINGS = ClassifierSettings(
    data_set="digits", model="small-cnn", method="float32", epochs=3, batch_size=32, lr=0.05, subset=320
)
DIGITS = digits()
METHODS = ("float32", "adapt", "adapt-nearest", "muppet", "fixed8")


def go(folder=None, **changes):
    return train(dataclasses.replace(SETTINGS, **changes), DIGITS, folder, progress=False)


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("adapt", "onecycle"),
        ("muppet", "onecycle"),
        ("adapt", "plateau"),
        *(pytest.param(m, "onecycle", marks=pytest.mark.long) for m in METHODS if m not in ("adapt", "muppet")),
        pytest.param("float32", "plateau", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path, monkeypatch, method, schedule):
    expected = go(method=method, schedule=schedule)
    interrupt(monkeypatch, lambda: go(tmp_path, method=method, schedule=schedule), epoch=2)
    torch.rand(7)  # a new process has another global stream
    resumed = go(tmp_path, method=method, schedule=schedule)

    assert timeless(resumed.history) == timeless(expected.history)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    if method != "float32":
        assert np.array_equal(resumed.trace.step, expected.trace.step)
        assert np.array_equal(resumed.trace.word_length, expected.trace.word_length)
        assert np.array_equal(resumed.trace.nonzero, expected.trace.nonzero)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = go(tmp_path)
    monkeypatch.setattr(training, "train_epoch", None)
    assert go(tmp_path).history == first.history


def test_a_folder_with_another_run_is_refused_by_name_and_kept(tmp_path):
    go(tmp_path, epochs=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt belongs to a run with another lr \(then 0\.05, now 0\.1\)"):
        go(tmp_path, epochs=1, lr=0.1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, content):
    go(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        go(tmp_path, epochs=1)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("caught",)

    torch.save({"settings": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        go(tmp_path)


@pytest.mark.parametrize(
    ("method", "lr"),
    [
        ("adapt", 0.02),
        pytest.param("float32", 0.05, marks=pytest.mark.long),
        pytest.param("fixed8", 0.05, marks=pytest.mark.long),
    ],
)
def test_every_method_learns_the_digits(method, lr):
    run = go(method=method, lr=lr, epochs=4, subset=None)
    assert run.history[-1]["accuracy"] > 0.93
    assert run.history[-1]["loss"] < run.history[0]["loss"] / 2


def test_evaluation_leaves_the_network_as_it_was():
    model = go(epochs=1).model
    split = DIGITS[1]
    batches = Batches(split, 100, *split.statistics())
    scores = evaluate(model, batches)
    assert model.training
    assert scores == evaluate(model.eval(), batches)
    assert not model.training


def test_fixed_and_adapt_weights_are_on_their_grid():
    for method in ("adapt", "fixed8"):
        run = go(method=method, epochs=1)
        parameters = dict(run.model.named_parameters())
        assert len(run.controller.precisions) == 4
        for name, precision in run.controller.precisions.items():
            steps = parameters[name].detach().double() / precision.step
            assert torch.equal(steps, steps.round())


def test_plateau_lowers_the_rate_only_when_the_loss_stands_still():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_schedule(dataclasses.replace(SETTINGS, schedule="plateau"), optimizer, 100)
    rates = []
    for loss in [5.0, 4.0, 3.0, *[3.0] * 6, 1.0]:
        schedule.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0] * 8 + [0.1] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg"}, "model must be one of .*resnet20, .* got 'vgg'"),
        ({"schedule": "cosine"}, "schedule must be one of onecycle, plateau"),
        ({"method": "muppet9"}, "method must be one of float32, adapt, .*fixed2 … fixed32.*, got 'muppet9'"),
        ({"method": "fixed99"}, "method must be one of .*got 'fixed99'"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"seed": -1}, "seed must not be negative"),
        ({"momentum": -0.1}, "momentum must not be negative, got -0.1"),
        ({"l1": 1e-5}, "l1 must be 0 for float32"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)


def test_a_diverging_run_stops_with_a_reason():
    with pytest.raises(ValueError, match="not a number any more: lr = 1e\\+30 is too high"):
        go(lr=1e30)


def test_the_result_file_holds_all_that_the_table_shows(tmp_path):
    run = go(tmp_path, method="adapt")
    result = write(run, "small-cnn adapt", tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["settings"]["method"] == "adapt"
    assert stored["command"].startswith("python")
    assert len(stored["history"]) == 3
    assert stored["parameters"] == 20_602
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoint.pt", "result.json", "trace.npz", "timeline.png", "word_length_heatmap.png",
    }  # fmt: skip
    text = table([stored])
    assert f"{stored['accuracy']:.4f}" in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_float32_costs_what_float32_costs():
    run = go(epochs=1, method="adapt")
    figures = costs(run.model, run.example, None, 32)
    assert figures["mean_word_length"] == 32
    assert figures["size_ratio"] == figures["training_speedup"] == figures["inference_speedup"] == 1
    assert figures.keys() == costs(run.model, run.example, run.trace, 32).keys()


def test_constant_eight_bits_cost_a_quarter_of_what_is_not_zero():
    run = go(method="fixed8", epochs=1)
    trace = run.trace
    figures = costs(run.model, run.example, trace, 32)
    share = float(trace.nonzero[-1] @ (trace.numel / trace.numel.sum()))
    assert figures["mean_word_length"] == 8
    assert figures["size_ratio"] == pytest.approx(share / 4, rel=1e-5)
    assert figures["inference_speedup"] > 4
