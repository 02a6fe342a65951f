"""The paper's figures 3 to 8, from the committed traces."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import adapt
from adapt import perfmodel
from adapt.figures import short_names
from recipes.adapt_tables.evidence import Group
from recipes.adapt_tables.tables import DATA_SETS, METHODS, NETWORKS
from recipes.common import ledger

INK, FAINT = "#22313f", "#d7dde3"
Course = Callable[[ledger.Line, adapt.Trace], NDArray[np.float64]]


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


LAYERS: Mapping[int, tuple[str, Course, str, float]] = {
    3: ("resnet20", word_lengths, "word length (bits)", 32),
    4: ("alexnet", word_lengths, "word length (bits)", 32),
    5: ("alexnet", sparsities, "share of zeros", 1),
    6: ("resnet20", sparsities, "share of zeros", 1),
}
"""Figures of every layer: network, what is drawn, what it is called, its largest value."""
TOTALS: Mapping[int, tuple[str, Course]] = {
    7: ("memory in training, float32 = 1", memory),
    8: ("cost of a step, float32 = 1", cost),
}
"""Figures with a line per network and method."""


def draw(groups: Sequence[Group], folder: Path, out: Path) -> list[Path]:
    """Draw every figure that there are traces for, as `figure3.png` to `figure8.png` in `out`; answer their paths.

    Of a network the data set of the paper's figures, CIFAR-100, is taken where it was run, and CIFAR-10 where not.

    Args:
        folder: what the lines' `trace` is relative to.
    """
    chosen: dict[str, Group] = {}
    for group in sorted(groups, key=_preference):
        if _traced(group, folder):
            chosen.setdefault(group.key[1], group)
    figures = {
        number: by_layer(chosen[network], folder, *what)
        for number, (network, *what) in LAYERS.items()
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


def by_layer(group: Group, folder: Path, course: Course, label: str, highest: float) -> Figure:
    """A panel per method, in it a stripe per layer over the epochs, the first on top; colours end at `highest`."""
    traced = _traced(group, folder)
    first = next(iter(traced.values()))[1]
    figure = Figure(figsize=(2 + 4.2 * len(traced), 1.6 + 0.17 * len(first.layers)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(traced), sharey=True, squeeze=False)[0]
    for axes, (method, (line, trace)) in zip(panels, traced.items(), strict=True):
        epochs = np.append(_epochs(line, trace), 2 * _epochs(line, trace)[-1] - _epochs(line, trace)[-2])
        mesh = axes.pcolormesh(
            epochs, np.arange(len(trace.layers) + 1), course(line, trace).T, cmap="YlGnBu", vmin=0, vmax=highest,
            rasterized=True,
        )  # fmt: skip
        axes.hlines(np.arange(1, len(trace.layers)), 0, epochs[-1], colors="white", linewidth=0.6)
        _dress(axes, METHODS[method])
        axes.grid(False)
        axes.set_xlim(0, epochs[-1])
    panels[0].set_ylim(len(first.layers), 0)
    panels[0].set_yticks(np.arange(len(first.layers)) + 0.5, short_names(first.layers), fontsize=7)
    bar = figure.colorbar(mesh, ax=panels, pad=0.015)
    bar.set_label(label, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    figure.suptitle(f"{_title(group)}, seed {_seed(traced)}", x=0.01, ha="left", fontsize=10, color=INK)
    return figure


def in_total(groups: Sequence[Group], folder: Path, label: str, course: Course) -> Figure:
    """A panel per network, in it a line per method over the epochs."""
    figure = Figure(figsize=(4.2 * len(groups), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    colours = dict(zip(METHODS, ("#3b528b", "#1f9e74", "#d1742f"), strict=True))
    highest = 1.0
    for axes, group in zip(panels, groups, strict=True):
        for method, (line, trace) in _traced(group, folder).items():
            values = course(line, trace)
            highest = max(highest, float(values.max()))
            axes.plot(_epochs(line, trace), values, color=colours[method], linewidth=1.2, label=METHODS[method])
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", label="float32")
        _dress(axes, _title(group))
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    panels[0].set_ylim(0, 1.08 * highest)
    panels[0].set_ylabel(label, color=INK, fontsize=9)
    return figure


def _traced(group: Group, folder: Path) -> dict[str, tuple[ledger.Line, adapt.Trace]]:
    """Of each method of the paper's tables the run with the lowest seed whose trace is there."""
    found = {}
    for method in METHODS:
        runs = group.runs(method)
        there = (line for _, line in sorted(runs.items()) if line["trace"] and (folder / line["trace"]).is_file())
        if (line := next(there, None)) is not None:
            found[method] = (line, adapt.Trace.load(folder / line["trace"]))
    return found


def _preference(group: Group) -> tuple[int, int]:
    """CIFAR-100 as in the paper's figures, then CIFAR-10, then others; of one data set the longest schedule."""
    order = ["cifar100", *(name for name in DATA_SETS if name != "cifar100")]
    return order.index(group.key[0]), -group.settings["epochs"]


def _epochs(line: ledger.Line, trace: adapt.Trace) -> NDArray[np.float64]:
    return np.asarray(trace.step * (len(line["history"]) / trace.step[-1]), np.float64)


def _title(group: Group) -> str:
    data_set, network = group.key
    return f"{NETWORKS[network]} on {DATA_SETS[data_set]}, {group.settings['epochs']} epochs"


def _seed(traced: Mapping[str, tuple[ledger.Line, adapt.Trace]]) -> str:
    return " and ".join(sorted({str(line["settings"]["seed"]) for line, _ in traced.values()}))


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel("epoch", color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
