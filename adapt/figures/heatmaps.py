"""Word lengths over the steps as coloured rows: of every layer, or of every channel of one layer."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from adapt.figures.canvas import FAINT, INK, PAGE, Canvas, drawn_rows, edges_of, short_names
from adapt.numerics import LONGEST_WORD
from adapt.trace import Trace

_COLUMNS = 1200
_FLOAT32 = "#8c6d4f"


def word_length_heatmap(trace: Trace, canvas: Canvas = PAGE) -> Figure:
    """Draw every layer's word length over the steps, with one row per layer, the first layer at the top.

    The colours span this run's word lengths; float32 has its own colour. On a page, a line above shows the average word
    length over all weights.

    Raises:
        ValueError: the trace has no rows.
    """
    rows, layers, mean = drawn_rows(len(trace), _COLUMNS), len(trace.layers), trace.mean_word_length()
    body = max(layers * (0.24 if layers <= 30 else 0.17), 2.6)
    edges = edges_of(trace.step[rows])
    if canvas.height is None:
        figure = canvas.figure(body + 1.9)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, body])
        above.stairs(mean[rows], edges, baseline=None, color=INK, linewidth=1.4)
        canvas.show_grid(above)
        above.set_ylabel("mean", fontsize=canvas.points, color=INK)
        above.tick_params(axis="x", length=0)
        above.set_ylim(np.floor(mean[rows].min()) - 0.5, np.ceil(mean[rows].max()) + 0.5)
        above.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
        top, title = above, "Word length of each layer, above: of the average weight ({:.1f} bits after step {})"
    else:
        body = canvas.height - 0.6
        figure = canvas.figure(canvas.height)
        top = below = figure.subplots()
        title = "Word length of each layer ({:.1f} bits on average)"
    canvas.set_title(top, title.format(mean[-1], trace.step[-1]))
    mesh = _mesh(below, edges, trace.word_length[rows])
    if layers <= 60:
        below.hlines(np.arange(1, layers), edges[0], edges[-1], colors="white", linewidth=0.8 if layers <= 30 else 0.4)
    below.set_ylim(layers, 0)
    # Only every k-th layer is named, so that names never touch.
    named = np.arange(0, layers, math.ceil(layers * canvas.points * 1.25 / (body * 72)))
    names = short_names(trace.layers, canvas.characters)
    below.set_yticks(named + 0.5, [names[i] for i in named], fontsize=canvas.points)
    below.tick_params(axis="y", length=0 if len(named) == layers else 2, labelcolor=INK, color=FAINT)
    below.spines[:].set_visible(False)
    canvas.label_steps(below, edges)
    _scale(figure, mesh, below, canvas, max(body * 5, 18))
    return figure


def channel_heatmap(
    step: NDArray[np.int64], word_length: NDArray[np.integer], name: str, canvas: Canvas = PAGE
) -> Figure:
    """Draw the word length of every channel of one layer over the steps, with one row per channel.

    Args:
        step: optimizer step of each row, int [rows], increasing.
        word_length: bits, int [rows, channels]; each row holds until the next.
        name: the layer's name.
        canvas: what to draw on.

    Raises:
        ValueError: there are no rows.
    """
    rows = drawn_rows(len(step), _COLUMNS)
    channels = word_length.shape[1]
    figure = canvas.figure(min(max(channels * 0.06, 2.6), 12.0))
    axes = figure.subplots()
    edges = edges_of(step[rows])
    mesh = _mesh(axes, edges, word_length[rows])
    axes.set_ylim(channels, 0)
    axes.yaxis.set_major_locator(MaxNLocator(4 if canvas.is_small else 8, integer=True, min_n_ticks=1))
    axes.tick_params(axis="y", color=FAINT, labelcolor=INK, labelsize=canvas.points)
    axes.set_ylabel("channel", color=INK, fontsize=canvas.points)
    axes.spines[:].set_visible(False)
    canvas.label_steps(axes, edges)
    _scale(figure, mesh, axes, canvas, 20)
    (short,) = short_names((name,), canvas.characters)
    canvas.set_title(axes, f"Word length of each channel of {short} ({word_length[-1].mean():.1f} bits on average)")
    return figure


def _mesh(axes: Axes, edges: NDArray[np.float64], word_length: NDArray[np.integer]) -> QuadMesh:
    """Draw word lengths [rows, lines] as coloured lines, with a colour for each word length and one for float32."""
    words = word_length[word_length < LONGEST_WORD]
    low, high = (int(words.min()), int(words.max())) if words.size else (LONGEST_WORD, LONGEST_WORD)
    bits = high - low + 1
    # A small range of word lengths should span fewer colours than a large one.
    colours = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.12, min(0.3 + 0.14 * bits, 1.0), bits)))
    norm = BoundaryNorm(np.arange(low, high + 2) - 0.5, bits)
    mesh = axes.pcolormesh(
        edges, np.arange(word_length.shape[1] + 1), word_length.T, cmap=colours, norm=norm, rasterized=True
    )
    if words.size < word_length.size and words.size:
        mesh.cmap = colours.with_extremes(over=_FLOAT32)
    return mesh


def _scale(figure: Figure, mesh: QuadMesh, axes: Axes, canvas: Canvas, aspect: float) -> None:
    """Draw the colour scale, with float32 above it if the run has both."""
    norm: Any = mesh.norm
    has_float32 = bool((np.asarray(mesh.get_array()) > norm.vmax).any())
    bar = figure.colorbar(
        mesh, ax=axes, fraction=0.04, pad=0.015, aspect=aspect, spacing="uniform", extend="max" if has_float32 else None
    )
    low, high = round(norm.vmin + 0.5), round(norm.vmax - 0.5)
    ticks = np.unique(np.linspace(low, high, 4 if canvas.is_small else 6).round()).astype(int).tolist()
    bar.set_ticks(ticks, labels=list(map(str, ticks)), fontsize=canvas.points, color=INK)
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)
    bar.set_label("bits" if canvas.is_small else "word length (bits)", color=INK, fontsize=canvas.points)
    if has_float32:
        bar.ax.set_title("float32", fontsize=canvas.points - 1, color=_FLOAT32)
