"""How the axes of all figures look."""

from typing import Literal

from matplotlib.axes import Axes

INK, FAINT = "#22313f", "#d7dde3"


def dress(axes: Axes, title: str, x_label: str, *, fontsize: int = 9, grid: Literal["both", "x", "y"] = "both") -> None:
    """Title, label, grid and spines in the colours of the figures."""
    axes.set_title(title, loc="left", fontsize=fontsize, color=INK)
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
