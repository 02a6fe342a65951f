"""Accuracy against the three costs and against the multiplier, a curve for each precision."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.common.axes import INK, dress
from recipes.common.dominance import Point, front
from recipes.pareto.runs import named
from recipes.pareto.study import COSTS, Study

STYLES = {
    "bfloat16": ("#22313f", "s"),
    "8": ("#3b528b", "o"),
    "4-8": ("#d1742f", "D"),
    "4": ("#1f9e74", "^"),
}


def draw(study: Study) -> Figure:
    """Figures 1, 5, 6 and 7 of the paper: accuracy against linear cost, quadratic cost, memory, and multiplier."""
    figure = Figure(figsize=(10, 7.6), dpi=110, layout="constrained")
    axes = list(figure.subplots(2, 2, sharey=True).flat)
    for panel, (cost, title) in zip(axes, COSTS.items(), strict=False):
        _panel(panel, study.points(cost), f"{title}, of bfloat16 × 1")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.3g}")
    multipliers: dict[str, list[Point]] = {}
    for network in study.networks:
        point = Point(network.name, network.multiplier, network.accuracy.mean)
        multipliers.setdefault(network.precision, []).append(point)
    _panel(axes[3], multipliers, "filter multiplier", ring=False)
    axes[0].set_title(study.title, loc="left", fontsize=10, color=INK)
    axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _panel(axes: Axes, curves: dict[str, list[Point]], label: str, *, ring: bool = True) -> None:
    for precision, points in curves.items():
        colour, marker = STYLES[precision]
        costs, scores = [point.cost for point in points], [point.score for point in points]
        axes.plot(costs, scores, color=colour, marker=marker, markersize=5, linewidth=1.4, label=named(precision))
    if ring:
        _ring(axes, front([point for points in curves.values() for point in points]))
    dress(axes, "", label)
    axes.set_ylabel("accuracy, %", color=INK, fontsize=9)


def _ring(axes: Axes, points: Sequence[Point]) -> None:
    axes.scatter(
        [point.cost for point in points], [point.score for point in points], s=110, facecolors="none", edgecolors=INK,
        linewidths=0.7, label="no other is cheaper and better",
    )  # fmt: skip
