"""Word lengths and zeros over the steps as curves, or as bands where there are many layers."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from adapt.figures.canvas import INK, PAGE, Canvas, drawn_rows, edges_of, short_names
from adapt.trace import Trace

_POINTS = 600
_MOST_LINES = 20
"""The most lines that an eye can follow. A timeline of more layers shows their distribution instead."""
_LEGEND_LINES = 10

# The ends of the colour map are cut off: one is too pale on white, the other too close to the bold line.
_DEPTH = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.08, 0.92, 256)))


def timeline(trace: Trace, canvas: Canvas = PAGE) -> Figure:
    """Draw every layer's word length (above) and share of zeros (below) over the steps, as in AdaPT's figures 3–6.

    The bold line shows the average over all weights. More than 20 layers are drawn as two bands, one of all layers, the
    other of the middle half of them.

    Raises:
        ValueError: the trace has no rows.
    """
    rows, layers, small = drawn_rows(len(trace), _POINTS), len(trace.layers), canvas.is_small
    edges = edges_of(trace.step[rows])
    figure = canvas.figure(6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    draw = _lines if layers <= _MOST_LINES else _bands
    zeros = 1 - trace.nonzero[rows]
    for axes, values in ((above, trace.word_length[rows]), (below, zeros)):
        draw(axes, edges, values, short_names(trace.layers, canvas.characters))
        average = values @ (trace.numel / trace.numel.sum())
        axes.stairs(average, edges, baseline=None, color=INK, linewidth=2 if small else 2.4, label="average weight")
        canvas.show_grid(axes)
    above.set_ylim(max(int(trace.word_length[rows].min()) - 1, 0), int(trace.word_length[rows].max()) + 1)
    above.yaxis.set_major_locator(MaxNLocator(4 if small else 8, integer=True, min_n_ticks=2))
    above.set_ylabel("bits" if small else "word length (bits)", color=INK, fontsize=canvas.points)
    # The margin below keeps the line of a network without zeros off the axis.
    most = min(max(float(zeros.max()) * 1.05, 0.05), 1.0)
    below.set_ylim(-0.04 * most, most)
    below.yaxis.set_major_locator(MaxNLocator(2 if small else 5, min_n_ticks=2))
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.set_ylabel("zeros" if small else "share of zeros", color=INK, fontsize=canvas.points)
    canvas.label_steps(below, edges)
    shown = "of each layer" if layers <= _MOST_LINES else "in bands: all layers, the middle half"
    title = f"Bits and zeros {shown}" if small else f"Precision and sparsity {shown}"
    canvas.set_title(above, f"{title}; bold: average")
    if small:
        return figure
    if layers <= _LEGEND_LINES or layers > _MOST_LINES:
        handles, labels = above.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside right center", frameon=False, fontsize=canvas.points, labelcolor=INK
        )
    else:
        bar = figure.colorbar(ScalarMappable(Normalize(1, layers), _DEPTH), ax=[above, below], pad=0.015, aspect=45)
        bar.set_label("layer, from the first to the last", color=INK, fontsize=canvas.points)
        bar.ax.tick_params(length=0, labelsize=canvas.points, labelcolor=INK)
        bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        bar.outline.set_visible(False)
    return figure


def _lines(axes: Axes, edges: NDArray[np.float64], values: NDArray[Any], names: list[str]) -> None:
    """Draw a line for each layer, coloured by its position in the network."""
    for layer, name in enumerate(names):
        colour = _DEPTH(layer / max(len(names) - 1, 1))
        axes.stairs(values[:, layer], edges, baseline=None, color=colour, linewidth=1.2, alpha=0.8, label=name)


def _bands(axes: Axes, edges: NDArray[np.float64], values: NDArray[Any], names: list[str]) -> None:
    """Draw bands of all layers and of the middle half of them, and their median."""
    least, low, median, high, most = np.quantile(values, (0, 0.25, 0.5, 0.75, 1), axis=1)
    light, dark = _DEPTH(0.72), _DEPTH(0.42)
    axes.stairs(most, edges, baseline=least, fill=True, color=light, alpha=0.35, label="all layers")
    axes.stairs(high, edges, baseline=low, fill=True, color=dark, alpha=0.45, label="the middle half of them")
    axes.stairs(median, edges, baseline=None, color=dark, linewidth=1.2, label="the median layer")
