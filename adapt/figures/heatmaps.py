"""Draw a trace as plain Figure objects, without pyplot, windows, or changes to global settings."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.numerics import LONGEST_WORD
from adapt.trace import Trace
from adapt.trace.display import thinned

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

_COLUMNS, _POINTS = 1200, 600
_MOST_LINES = 20
"""The most lines that an eye can follow. A timeline of more layers shows their distribution instead."""
_LEGEND_LINES = 10
_INK, _FAINT, _FLOAT32 = "#22313f", "#d7dde3", "#8c6d4f"


@dataclass(frozen=True)
class Canvas:
    """Size and resolution of a figure.

    Args:
        width: in inches.
        height: in inches; None for as high as the layers need.
        dpi: dots per inch.
        points: font size.
        characters: longest name that is not abbreviated.
    """

    width: float
    height: float | None
    dpi: int
    points: float
    characters: int


PAGE = Canvas(10, None, 110, 8, 36)
"""For a file, in which every layer is named."""

CARD = Canvas(3.7, 2.35, 260, 7.5, 16)
"""For a card of TensorBoard, which shows a picture of this shape about 360 pixels wide."""


def word_length_heatmap(trace: Trace, canvas: Canvas = PAGE) -> Figure:
    """Draw every layer's word length over the steps, with one row per layer, the first layer at the top.

    The colours span this run's word lengths; float32 has its own colour. On a page, a line above shows the average word
    length over all weights.

    Raises:
        ValueError: the trace has no rows.
    """
    rows, layers, mean = _thinned(trace, _COLUMNS), len(trace.layers), trace.mean_word_length()
    body = max(layers * (0.24 if layers <= 30 else 0.17), 2.6)
    edges = _edges(trace.step[rows])
    if canvas.height is None:
        figure = _figure(canvas, body + 1.9)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, body])
        above.stairs(mean[rows], edges, baseline=None, color=_INK, linewidth=1.4)
        _clean(above, canvas)
        above.set_ylabel("mean", fontsize=canvas.points, color=_INK)
        above.tick_params(axis="x", length=0)
        above.set_ylim(np.floor(mean[rows].min()) - 0.5, np.ceil(mean[rows].max()) + 0.5)
        above.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
        top, title = above, "Word length of each layer, above: of the average weight ({:.1f} bits after step {})"
    else:
        body = canvas.height - 0.6
        figure = _figure(canvas, canvas.height)
        top = below = figure.subplots()
        title = "Word length of each layer ({:.1f} bits on average)"
    _title(top, title.format(mean[-1], trace.step[-1]), canvas)
    mesh = _mesh(below, edges, trace.word_length[rows])
    if layers <= 60:
        below.hlines(np.arange(1, layers), edges[0], edges[-1], colors="white", linewidth=0.8 if layers <= 30 else 0.4)
    below.set_ylim(layers, 0)
    # Only every k-th layer is named, so that names never touch.
    named = np.arange(0, layers, math.ceil(layers * canvas.points * 1.25 / (body * 72)))
    names = short_names(trace.layers, canvas.characters)
    below.set_yticks(named + 0.5, [names[i] for i in named], fontsize=canvas.points)
    below.tick_params(axis="y", length=0 if len(named) == layers else 2, labelcolor=_INK, color=_FAINT)
    below.spines[:].set_visible(False)
    _label_steps(below, edges, canvas)
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
    if not len(step):
        raise ValueError("there are no word lengths yet: there is nothing to draw")
    rows = thinned(0, len(step), _COLUMNS)
    channels = word_length.shape[1]
    figure = _figure(canvas, min(max(channels * 0.06, 2.6), 12.0))
    axes = figure.subplots()
    edges = _edges(step[rows])
    mesh = _mesh(axes, edges, word_length[rows])
    axes.set_ylim(channels, 0)
    axes.yaxis.set_major_locator(MaxNLocator(8 if canvas.height is None else 4, integer=True, min_n_ticks=1))
    axes.tick_params(axis="y", color=_FAINT, labelcolor=_INK, labelsize=canvas.points)
    axes.set_ylabel("channel", color=_INK, fontsize=canvas.points)
    axes.spines[:].set_visible(False)
    _label_steps(axes, edges, canvas)
    _scale(figure, mesh, axes, canvas, 20)
    (short,) = short_names((name,), canvas.characters)
    _title(axes, f"Word length of each channel of {short} ({word_length[-1].mean():.1f} bits on average)", canvas)
    return figure


def timeline(trace: Trace, canvas: Canvas = PAGE) -> Figure:
    """Draw every layer's word length (above) and share of zeros (below) over the steps, as in AdaPT's figures 3–6.

    The bold line shows the average over all weights. More than 20 layers are drawn as two bands, one of all layers, the
    other of the middle half of them.

    Raises:
        ValueError: the trace has no rows.
    """
    rows, layers, small = _thinned(trace, _POINTS), len(trace.layers), canvas.height is not None
    edges = _edges(trace.step[rows])
    figure = _figure(canvas, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    draw = _lines if layers <= _MOST_LINES else _bands
    zeros = 1 - trace.nonzero[rows]
    for axes, values in ((above, trace.word_length[rows]), (below, zeros)):
        draw(axes, edges, values, short_names(trace.layers, canvas.characters))
        average = values @ (trace.numel / trace.numel.sum())
        axes.stairs(average, edges, baseline=None, color=_INK, linewidth=2 if small else 2.4, label="average weight")
        _clean(axes, canvas)
    above.set_ylim(max(int(trace.word_length[rows].min()) - 1, 0), int(trace.word_length[rows].max()) + 1)
    above.yaxis.set_major_locator(MaxNLocator(4 if small else 8, integer=True, min_n_ticks=2))
    above.set_ylabel("bits" if small else "word length (bits)", color=_INK, fontsize=canvas.points)
    # The margin below keeps the line of a network without zeros off the axis.
    most = min(max(float(zeros.max()) * 1.05, 0.05), 1.0)
    below.set_ylim(-0.04 * most, most)
    below.yaxis.set_major_locator(MaxNLocator(2 if small else 5, min_n_ticks=2))
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.set_ylabel("zeros" if small else "share of zeros", color=_INK, fontsize=canvas.points)
    _label_steps(below, edges, canvas)
    shown = "of each layer" if layers <= _MOST_LINES else "in bands: all layers, the middle half"
    title = f"Bits and zeros {shown}" if small else f"Precision and sparsity {shown}"
    _title(above, f"{title}; bold: average", canvas)
    if small:
        return figure
    if layers <= _LEGEND_LINES or layers > _MOST_LINES:
        handles, labels = above.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside right center", frameon=False, fontsize=canvas.points, labelcolor=_INK
        )
    else:
        bar = figure.colorbar(ScalarMappable(Normalize(1, layers), _DEPTH), ax=[above, below], pad=0.015, aspect=45)
        bar.set_label("layer, from the first to the last", color=_INK, fontsize=canvas.points)
        bar.ax.tick_params(length=0, labelsize=canvas.points, labelcolor=_INK)
        bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        bar.outline.set_visible(False)
    return figure


# The ends of the colour map are cut off: one is too pale on white, the other too close to the bold line.
_DEPTH = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.08, 0.92, 256)))


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


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the drawn figure, uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()


def short_names(layers: tuple[str, ...], characters: int = PAGE.characters) -> list[str]:
    """Shorten the names to labels: drop ".weight" if all end with it, and the middle of long names."""
    if all(name.endswith(".weight") and name != ".weight" for name in layers):
        layers = tuple(name.removesuffix(".weight") for name in layers)
    half = characters // 2
    # Matplotlib would read a dollar sign as the start of a formula.
    return [
        (name if len(name) <= characters else f"{name[:half].rstrip('.')}…{name[1 - half :].lstrip('.')}").replace(
            "$", r"\$"
        )
        for name in layers
    ]


def _thinned(trace: Trace, points: int) -> NDArray[np.int64]:
    if not len(trace):
        raise ValueError("the trace has no rows yet: there is nothing to draw")
    return thinned(0, len(trace), points)


def _edges(step: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return where each row begins, and where the last one ends, which is drawn as wide as the one before."""
    width = step[-1] - step[-2] if len(step) > 1 else 1
    return np.append(step, step[-1] + width).astype(np.float64)


def _figure(canvas: Canvas, height: float) -> Figure:
    return Figure(figsize=(canvas.width, canvas.height or height), dpi=canvas.dpi, layout="constrained")


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
    ticks = np.unique(np.linspace(low, high, 6 if canvas.height is None else 4).round()).astype(int).tolist()
    bar.set_ticks(ticks, labels=list(map(str, ticks)), fontsize=canvas.points, color=_INK)
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)
    bar.set_label("word length (bits)" if canvas.height is None else "bits", color=_INK, fontsize=canvas.points)
    if has_float32:
        bar.ax.set_title("float32", fontsize=canvas.points - 1, color=_FLOAT32)


def _title(axes: Axes, text: str, canvas: Canvas) -> None:
    if canvas.height is None:
        axes.set_title(text, loc="left", fontsize=canvas.points + 3, color=_INK)
    else:
        # A small picture needs its whole width for the title.
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.suptitle(text, x=0.02, ha="left", fontsize=canvas.points + 0.5, color=_INK)


def _label_steps(axes: Axes, edges: NDArray[np.float64], canvas: Canvas) -> None:
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("optimizer step", color=_INK, fontsize=canvas.points)
    ticks = 9 if canvas.height is None else 5
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="x", color=_FAINT, labelcolor=_INK, labelsize=canvas.points)


def _clean(axes: Axes, canvas: Canvas) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=_FAINT, labelcolor=_INK, labelsize=canvas.points)
