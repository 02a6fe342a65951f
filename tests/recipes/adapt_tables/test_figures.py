import numpy as np
import pytest

from recipes.adapt_tables import figures
from recipes.adapt_tables.experiments import gather
from tests.recipes.adapt_tables.samples import line, store, trace


def test_memory_and_cost_follow_the_formats():
    memory = figures.memory(line(), trace((8, 16)))
    assert memory == pytest.approx([(0.5 * 8 + 32) / 32] * 10 + [(0.5 * 16 + 32) / 32] * 10)
    # No windows, so no overhead: forward at sp·WL bits and backward at 32, over 32 and 32.
    cost = figures.cost(line(), trace((8, 16)))
    assert cost == pytest.approx([(0.5 * 8 + 32) / 64] * 10 + [(0.5 * 16 + 32) / 64] * 10)


def test_layers_are_drawn_as_the_trace_has_them(tmp_path):
    run = line()
    run["trace"] = "traces/a.npz"
    store(tmp_path, run)
    (experiment,) = gather(tmp_path)
    figure = figures.by_layer(experiment, tmp_path, figures.word_lengths, "bits", 32)
    axes = figure.axes[0]
    mesh = axes.collections[0]
    assert np.array_equal(mesh.get_array().reshape(2, 20), trace().word_length.T)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlim()[1] == pytest.approx(2.1)  # epochs, the last row as wide as the others


def test_cifar100_and_longer_schedules_are_preferred(tmp_path):
    runs = [line(), line(accuracies=(0.1, 0.2, 0.3)), line(data_set="cifar100", accuracies=(0.1,))]
    for i, run in enumerate(runs):
        run["trace"] = f"traces/{i}.npz"
    store(tmp_path, *runs)
    ordered = sorted(gather(tmp_path), key=figures.preference)
    assert [(experiment.key[0], experiment.settings["epochs"]) for experiment in ordered] == [
        ("cifar100", 1), ("cifar10", 3), ("cifar10", 2),
    ]  # fmt: skip
