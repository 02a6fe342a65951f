"""The paper's figures 3 to 8, from the traces of our runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import adapt
from adapt import perfmodel
from recipes.adapt_tables.experiments import Experiment
from recipes.adapt_tables.tables import DATA_SETS, METHODS, NETWORKS
from recipes.common import ledger
from recipes.common.axes import INK, dress

Values = Callable[[ledger.Line, adapt.Trace], NDArray[np.float64]]


def word_lengths(line: ledger.Line, trace: adapt.Trace) -> NDArray[np.float64]:
    """Bits of each layer [rows, layers]."""
    return trace.word_length.astype(np.float64)


def sparsities(line: ledger.Line, trace: adapt.Trace) -> NDArray[np.float64]:
    """Share of zeros of each layer [rows, layers]."""
    return 1 - trace.nonzero.astype(np.float64)


def memory(line: ledger.Line, trace: adapt.Trace) -> NDArray[np.float64]:
    """AdaPT 4.1.2: memory for weights and masters in each step over that of float32, by elements [rows]."""
    return np.array(
        [perfmodel.memory_ratio(trace.word_length[i], trace.nonzero[i], trace.numel) for i in range(len(trace))]
    )


def cost(line: ledger.Line, trace: adapt.Trace) -> NDArray[np.float64]:
    """AdaPT eq. 8 and 9: cost of each step, switching included, over that of float32 [rows].

    Backward counts one product per layer, as in the paper's tables.
    """
    operations = [line["layers"][name]["operations"] for name in trace.layers]
    speedups = [
        perfmodel.training_speedup(
            operations, trace.word_length[i], trace.nonzero[i], batch_size=line["settings"]["batch_size"],
            backward_factor=1,
            overhead=perfmodel.switching_cost(
                trace.numel, trace.nonzero[i], trace.lookback[i], trace.resolution[i]
            ),
        )
        for i in range(len(trace))
    ]  # fmt: skip
    return 1 / np.array(speedups)


LAYERS: Mapping[int, tuple[str, Values, str, float]] = {
    3: ("resnet20", word_lengths, "word length (bits)", 32),
    4: ("alexnet", word_lengths, "word length (bits)", 32),
    5: ("alexnet", sparsities, "share of zeros", 1),
    6: ("resnet20", sparsities, "share of zeros", 1),
}
"""Figures with every layer: the network, the values, their label and the largest value."""
TOTALS: Mapping[int, tuple[str, Values]] = {
    7: ("memory in training, float32 = 1", memory),
    8: ("cost of a step, float32 = 1", cost),
}
"""Figures with a line per network and method: the label and the values."""


def draw(experiments: Sequence[Experiment], folder: Path, out: Path) -> list[Path]:
    """Draw every figure that has traces as `figure3.png` to `figure8.png` in `out`, and return their paths.

    A network is shown on CIFAR-100, the data set of the paper's figures, if it was run there, and on CIFAR-10 if not.

    Args:
        folder: the folder to which the lines' `trace` is relative.
    """
    chosen: dict[str, Experiment] = {}
    for experiment in sorted(experiments, key=preference):
        if _traced(experiment, folder):
            chosen.setdefault(experiment.key[1], experiment)
    figures = {
        number: by_layer(chosen[network], folder, values_of, label, highest)
        for number, (network, values_of, label, highest) in LAYERS.items()
        if network in chosen
    }
    if chosen:
        figures |= {number: in_total(list(chosen.values()), folder, *what) for number, what in TOTALS.items()}
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, figure in sorted(figures.items()):
        paths.append(out / f"figure{number}.png")
        figure.savefig(paths[-1])
    return paths


def by_layer(experiment: Experiment, folder: Path, values_of: Values, label: str, highest: float) -> Figure:
    """A panel per method with a stripe per layer over the epochs, the first layer on top; colours end at `highest`."""
    traced = _traced(experiment, folder)
    first = next(iter(traced.values()))[1]
    figure = Figure(figsize=(2 + 4.2 * len(traced), 1.6 + 0.17 * len(first.layers)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(traced), sharey=True, squeeze=False)[0]
    for axes, (method, (line, trace)) in zip(panels, traced.items(), strict=True):
        epochs = np.append(_epochs(line, trace), 2 * _epochs(line, trace)[-1] - _epochs(line, trace)[-2])
        mesh = axes.pcolormesh(
            epochs, np.arange(len(trace.layers) + 1), values_of(line, trace).T, cmap="YlGnBu", vmin=0, vmax=highest,
            rasterized=True,
        )  # fmt: skip
        axes.hlines(np.arange(1, len(trace.layers)), 0, epochs[-1], colors="white", linewidth=0.6)
        dress(axes, METHODS[method], "epoch")
        axes.grid(False)
        axes.set_xlim(0, epochs[-1])
    panels[0].set_ylim(len(first.layers), 0)
    names = [name.removesuffix(".weight") for name in first.layers]
    panels[0].set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
    bar = figure.colorbar(mesh, ax=panels, pad=0.015)
    bar.set_label(label, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    figure.suptitle(f"{_title(experiment)}, seed {_seed(traced)}", x=0.01, ha="left", fontsize=10, color=INK)
    return figure


def in_total(experiments: Sequence[Experiment], folder: Path, label: str, values_of: Values) -> Figure:
    """A panel per network with a line per method over the epochs."""
    figure = Figure(figsize=(4.2 * len(experiments), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(experiments), sharey=True, squeeze=False)[0]
    colours = dict(zip(METHODS, ("#3b528b", "#1f9e74", "#d1742f"), strict=True))
    highest = 1.0
    for axes, experiment in zip(panels, experiments, strict=True):
        for method, (line, trace) in _traced(experiment, folder).items():
            values = values_of(line, trace)
            highest = max(highest, float(values.max()))
            axes.plot(_epochs(line, trace), values, color=colours[method], linewidth=1.2, label=METHODS[method])
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", label="float32")
        dress(axes, _title(experiment), "epoch", grid="y")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    panels[0].set_ylim(0, 1.08 * highest)
    panels[0].set_ylabel(label, color=INK, fontsize=9)
    return figure


def _traced(experiment: Experiment, folder: Path) -> dict[str, tuple[ledger.Line, adapt.Trace]]:
    """For each method of the paper's tables, the run with the lowest seed that has a trace."""
    found = {}
    for method in METHODS:
        runs = experiment.runs(method)
        traced = (line for _, line in sorted(runs.items()) if line["trace"] and (folder / line["trace"]).is_file())
        if (line := next(traced, None)) is not None:
            found[method] = (line, adapt.Trace.load(folder / line["trace"]))
    return found


def preference(experiment: Experiment) -> tuple[int, int]:
    """Sort key: CIFAR-100 as in the paper's figures, CIFAR-10, then others; for one data set the longest schedule."""
    order = ["cifar100", *(name for name in DATA_SETS if name != "cifar100")]
    return order.index(experiment.key[0]), -experiment.settings["epochs"]


def _epochs(line: ledger.Line, trace: adapt.Trace) -> NDArray[np.float64]:
    return np.asarray(trace.step * (len(line["history"]) / trace.step[-1]), np.float64)


def _title(experiment: Experiment) -> str:
    data_set, network = experiment.key
    return f"{NETWORKS[network]} on {DATA_SETS[data_set]}, {experiment.settings['epochs']} epochs"


def _seed(traced: Mapping[str, tuple[ledger.Line, adapt.Trace]]) -> str:
    return " and ".join(sorted({str(line["settings"]["seed"]) for line, _ in traced.values()}))
