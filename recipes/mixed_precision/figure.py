"""Accuracy against size, a panel per network, and which points no other point beats in both."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.common.axes import INK, dress
from recipes.common.comparison import estimate
from recipes.mixed_precision.experiments import Experiment, accuracy, kilobytes
from recipes.mixed_precision.methods import kind_of

STYLES = {
    "lsq": ("LSQ, one width for all", "#3b528b", "o"),
    "learned": ("learned widths", "#d1742f", "D"),
    "compact": ("AdaPT, compact", "#1f9e74", "s"),
}


def draw(experiments: Sequence[Experiment]) -> Figure:
    """Mean accuracy against mean size, with bars for the standard error.

    float32 is a horizontal line, because its size would be far to the right.
    """
    figure = Figure(figsize=(5.4 * len(experiments), 4), dpi=110, layout="constrained")
    for axes, experiment in zip(figure.subplots(1, len(experiments), squeeze=False)[0], experiments, strict=True):
        _panel(axes, experiment)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (size, accuracy), whether no other point is at least as small and accurate, and better in one."""
    return [not any(s <= size and a >= value and (s, a) != (size, value) for s, a in points) for size, value in points]


def spaced(sizes: Iterable[float]) -> list[float]:
    """Those of the sizes, from the largest down, whose labels do not touch on a logarithmic axis."""
    kept: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not kept or size < kept[-1] / 1.1:
            kept.append(size)
    return kept


def _panel(axes: Axes, experiment: Experiment) -> None:
    points: dict[str, list[tuple[float, float, float]]] = {}
    for method, runs in experiment.methods.items():
        size, value = estimate(runs, kilobytes), estimate(runs, accuracy)
        assert size is not None
        assert value is not None
        if method == "float32":
            axes.axhline(value.mean, color=INK, linewidth=0.8, linestyle=":", label=f"float32, {size.mean:,.0f} kB")
        else:
            points.setdefault(kind_of(method)[0], []).append((size.mean, value.mean, value.error))
    for kind, found in points.items():
        label, colour, marker = STYLES[kind]
        sizes, values, errors = zip(*sorted(found), strict=True)
        axes.errorbar(
            sizes, values, yerr=[0 if error != error else error for error in errors], color=colour, marker=marker,
            markersize=5, linewidth=1.4, capsize=3, label=label,
        )  # fmt: skip
    every = [point for found in points.values() for point in found]
    front = [point for point, best in zip(every, pareto([point[:2] for point in every]), strict=True) if best]
    axes.scatter(
        [size for size, _, _ in front], [value for _, value, _ in front], s=110, facecolors="none", edgecolors=INK,
        linewidths=0.7, label="no other is smaller and better",
    )  # fmt: skip
    dress(axes, experiment.network, "weights and activations, kB", fontsize=10)
    axes.set_xscale("log", base=2)
    ticks = spaced(size for size, _, _ in every)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("accuracy, %", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
