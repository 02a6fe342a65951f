"""Accuracy against size, a panel per network: which points no other one beats in both."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.adapt_tables.figures import FAINT, INK
from recipes.common.evidence import figure
from recipes.mixed_precision.groups import NETWORKS, Group, accuracy, kilobytes
from recipes.mixed_precision.points import kind_of

STYLES = {
    "lsq": ("LSQ, one width for all", "#3b528b", "o"),
    "learned": ("learned widths", "#d1742f", "D"),
    "compact": ("AdaPT, compact", "#1f9e74", "s"),
}


def draw(groups: Sequence[Group]) -> Figure:
    """Mean accuracy against mean size, bars for the standard error; float32 is a line, as it is out to the right."""
    whole = Figure(figsize=(5.4 * len(groups), 4), dpi=110, layout="constrained")
    for axes, group in zip(whole.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        _panel(axes, group)
    return whole


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each (size, accuracy), whether no other point is as small and as accurate, and better in one."""
    return [not any(s <= size and a >= value and (s, a) != (size, value) for s, a in points) for size, value in points]


def _apart(sizes: Iterable[float]) -> list[float]:
    """From the largest down those of the sizes whose labels do not touch on a logarithmic axis."""
    kept: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not kept or size < kept[-1] / 1.1:
            kept.append(size)
    return kept


def _panel(axes: Axes, group: Group) -> None:
    points: dict[str, list[tuple[float, float, float]]] = {}
    for method, runs in group.methods.items():
        size, value = figure(runs, kilobytes), figure(runs, accuracy)
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
    axes.set_title(NETWORKS.get(group.settings["model"], group.settings["model"]), loc="left", fontsize=10, color=INK)
    axes.set_xscale("log", base=2)
    ticks = _apart(size for size, _, _ in every)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights and activations, kB", color=INK, fontsize=9)
    axes.set_ylabel("accuracy, %", color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
