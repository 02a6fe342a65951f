"""What all pictures share: sizes, colours, titles, the axis of steps, and the pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapt.trace.display import thinned

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator
except ImportError as error:
    raise ImportError(
        "the pictures of a trace need matplotlib: run pip install 'adapt-precision[tensorboard]'"
    ) from error

INK, FAINT = "#22313f", "#d7dde3"


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

    @property
    def is_small(self) -> bool:
        """Whether the height is given, so that there is no room for much text."""
        return self.height is not None

    def figure(self, height: float) -> Figure:
        """Return an empty figure, of this height if the canvas has none."""
        return Figure(figsize=(self.width, self.height or height), dpi=self.dpi, layout="constrained")

    def set_title(self, axes: Axes, text: str) -> None:
        """Write a title above the topmost axes."""
        if not self.is_small:
            axes.set_title(text, loc="left", fontsize=self.points + 3, color=INK)
            return
        # A small picture needs its whole width for the title.
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.suptitle(text, x=0.02, ha="left", fontsize=self.points + 0.5, color=INK)

    def label_steps(self, axes: Axes, edges: NDArray[np.float64]) -> None:
        """Label the axis of optimizer steps, which spans the edges of the rows."""
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("optimizer step", color=INK, fontsize=self.points)
        ticks = 5 if self.is_small else 9
        axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(axis="x", color=FAINT, labelcolor=INK, labelsize=self.points)

    def show_grid(self, axes: Axes) -> None:
        """Draw a faint grid of values in place of the frame."""
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(color=FAINT, labelcolor=INK, labelsize=self.points)


PAGE = Canvas(10, None, 110, 8, 36)
"""For a file, in which every layer is named."""

CARD = Canvas(3.7, 2.35, 260, 7.5, 16)
"""For a card of TensorBoard, which shows a picture of this shape about 360 pixels wide."""


def drawn_rows(rows: int, points: int) -> NDArray[np.int64]:
    """Return the indices of at most `points` + 1 rows, evenly spaced, and the last.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there are no rows yet, so there is nothing to draw")
    return thinned(0, rows, points)


def edges_of(step: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return where each row begins, and where the last one ends, which is drawn as wide as the one before."""
    width = step[-1] - step[-2] if len(step) > 1 else 1
    return np.append(step, step[-1] + width).astype(np.float64)


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
