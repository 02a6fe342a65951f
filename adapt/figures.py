"""Draw a trace as plain Figure objects: without pyplot, without a window, without changing global settings."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.trace import Trace
from adapt.trace.thinning import thinned

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
except ImportError as error:
    raise ImportError(
        "the pictures of a trace need matplotlib: run pip install 'adapt-precision[tensorboard]'"
    ) from error

# The same colour means the same word length in every picture, whatever range a run covers. Classes are one bit wide
# where one bit matters, and wider above.
_CLASSES = (1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
_COLUMNS = 1200
_POINTS = 600
_LEGEND_LINES = 10
_NAME_CHARACTERS = 36
_INK, _FAINT = "#22313f", "#d7dde3"
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "color": _INK}


def word_length_heatmap(trace: Trace) -> Figure:
    """Draw every layer's word length over the steps: a row of the picture per layer, the first layer at the top.

    The line above shows the word length of the average weight.

    Raises:
        ValueError: the trace has no rows.
    """
    rows = _thinned(trace, _COLUMNS)
    layers = len(trace.layers)
    row_height = 0.24 if layers <= 30 else 0.17
    body = max(layers * row_height, 2.6)
    figure = Figure(figsize=(10, body + 1.9), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, body])

    edges = _edges(trace.step[rows])
    mesh = _mesh(below, edges, trace.word_length[rows])
    below.hlines(np.arange(1, layers), edges[0], edges[-1], colors="white", linewidth=0.8 if layers <= 30 else 0.4)
    below.set_ylim(layers, 0)
    below.set_yticks(np.arange(layers) + 0.5, short_names(trace.layers), fontsize=8 if layers <= 30 else 6.5)
    below.tick_params(axis="y", length=0, labelcolor=_INK)
    below.spines[:].set_visible(False)
    _label_steps(below, edges[0], edges[-1])

    _scale(figure, mesh, below, max(body * 5, 10))

    mean = trace.mean_word_length()
    above.stairs(mean[rows], edges, baseline=None, color=_INK, linewidth=1.4)
    _clean(above)
    above.set_ylabel("mean", fontsize=8, color=_INK)
    above.tick_params(axis="x", length=0)
    above.set_ylim(np.floor(mean[rows].min()) - 0.5, np.ceil(mean[rows].max()) + 0.5)
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    above.set_title(
        f"Word length of each layer, above: of the average weight ({mean[-1]:.1f} bits after step {trace.step[-1]})",
        **_TITLE,
    )
    return figure


def channel_heatmap(step: NDArray[np.int64], word_length: NDArray[np.integer], name: str) -> Figure:
    """Draw the word length of every channel of one layer over the steps: a row of the picture per channel.

    Args:
        step: optimizer step of each row, int [rows], increasing.
        word_length: bits, int [rows, channels]; each row holds until the next.
        name: the layer's name.

    Raises:
        ValueError: there are no rows.
    """
    if not len(step):
        raise ValueError("there are no word lengths yet: there is nothing to draw")
    rows = thinned(0, len(step), _COLUMNS)
    channels = word_length.shape[1]
    figure = Figure(figsize=(10, min(max(channels * 0.06, 2.6), 12.0)), dpi=110, layout="constrained")
    axes = figure.subplots()
    edges = _edges(step[rows])
    mesh = _mesh(axes, edges, word_length[rows])
    axes.set_ylim(channels, 0)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.tick_params(axis="y", color=_FAINT, labelcolor=_INK, labelsize=8)
    axes.set_ylabel("channel", color=_INK, fontsize=9)
    axes.spines[:].set_visible(False)
    _label_steps(axes, edges[0], edges[-1])
    _scale(figure, mesh, axes, 20)
    (short,) = short_names((name,))
    axes.set_title(f"Word length of each channel of {short} ({word_length[-1].mean():.1f} bits on average)", **_TITLE)
    return figure


def timeline(trace: Trace) -> Figure:
    """Draw every layer's word length (above) and share of zeros (below) over the steps, as in AdaPT's figures 3–6.

    The dark line shows the average weight.

    Raises:
        ValueError: the trace has no rows.
    """
    rows = _thinned(trace, _POINTS)
    edges, layers, names = _edges(trace.step[rows]), len(trace.layers), short_names(trace.layers)
    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    # Without the ends of the colour map, which are too pale on white and too close to the dark line.
    depth = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.08, 0.92, 256)))
    weights = trace.numel / trace.numel.sum()
    zeros = 1 - trace.nonzero[rows]
    # Layers often have equal word lengths. Lines that are shifted by less than a quarter bit all stay visible.
    apart = np.linspace(0.2, -0.2, layers) if layers > 1 else 0.0
    for axes, values, shift in ((above, trace.word_length[rows], apart), (below, zeros, np.zeros(layers))):
        lines = values + shift
        for layer in range(layers):
            axes.stairs(
                lines[:, layer],
                edges,
                baseline=None,
                color=depth(layer / max(layers - 1, 1)),
                linewidth=1.2 if layers <= 30 else 0.8,
                alpha=0.75,
                label=names[layer],
            )
        axes.stairs(values @ weights, edges, baseline=None, color=_INK, linewidth=2.2, label="average weight")
        _clean(axes)
    above.set_ylim(max(int(trace.word_length[rows].min()) - 1, 0), int(trace.word_length[rows].max()) + 1)
    above.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=2))
    above.set_ylabel("word length (bits)", color=_INK, fontsize=9)
    below.set_ylim(0, min(max(float(zeros.max()) * 1.05, 0.05), 1.0))
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.set_ylabel("share of zeros", color=_INK, fontsize=9)
    _label_steps(below, edges[0], edges[-1])
    above.set_title("Precision and sparsity of each layer, dark: of the average weight", **_TITLE)
    if layers <= _LEGEND_LINES:
        handles, labels = above.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8, labelcolor=_INK)
    else:
        bar = figure.colorbar(ScalarMappable(Normalize(1, layers), depth), ax=[above, below], pad=0.015, aspect=45)
        bar.set_label("layer, from the first to the last", color=_INK, fontsize=9)
        bar.ax.tick_params(length=0, labelsize=8, labelcolor=_INK)
        bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        bar.outline.set_visible(False)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the drawn figure, uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()


def short_names(layers: tuple[str, ...]) -> list[str]:
    """Return the names as labels: without a ".weight" at the end of all of them, long ones without their middle."""
    if all(name.endswith(".weight") and name != ".weight" for name in layers):
        layers = tuple(name.removesuffix(".weight") for name in layers)
    half = _NAME_CHARACTERS // 2
    # A dollar sign would start a formula.
    return [
        (
            name if len(name) <= _NAME_CHARACTERS else f"{name[:half].rstrip('.')}…{name[1 - half :].lstrip('.')}"
        ).replace("$", r"\$")
        for name in layers
    ]


def _thinned(trace: Trace, points: int) -> NDArray[np.int64]:
    if not len(trace):
        raise ValueError("the trace has no rows yet: there is nothing to draw")
    return thinned(0, len(trace), points)


def _edges(step: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return where each row begins, and the end of the last, which is drawn as wide as the one before."""
    width = step[-1] - step[-2] if len(step) > 1 else 1
    return np.append(step, step[-1] + width).astype(np.float64)


def _mesh(axes: Axes, edges: NDArray[np.float64], word_length: NDArray[np.integer]) -> QuadMesh:
    """Draw word lengths [rows, lines] as coloured lines."""
    colours = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.04, 1.0, len(_CLASSES))))
    norm = BoundaryNorm([*_CLASSES, 33], colours.N)
    lines = np.arange(word_length.shape[1] + 1)
    return axes.pcolormesh(edges, lines, word_length.T, cmap=colours, norm=norm, rasterized=True)


def _scale(figure: Figure, mesh: QuadMesh, axes: Axes, aspect: float) -> None:
    """Draw the scale of the colours."""
    bar = figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.015, aspect=aspect, spacing="uniform")
    classes = list(pairwise((*_CLASSES, 33)))
    labels = [str(low) if high - low == 1 else f"{low}–{high - 1}" for low, high in classes]
    bar.set_ticks([(low + high) / 2 for low, high in classes], labels=labels, fontsize=7, color=_INK)
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)
    bar.set_label("word length (bits)", color=_INK, fontsize=9)


def _label_steps(axes: Axes, first: float, last: float) -> None:
    axes.set_xlim(first, last)
    axes.set_xlabel("optimizer step", color=_INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="x", color=_FAINT, labelcolor=_INK, labelsize=8)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=_FAINT, labelcolor=_INK, labelsize=8)
