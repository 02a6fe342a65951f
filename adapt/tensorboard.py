"""A trace in TensorBoard: lines, pictures, histograms, and the settings of the run."""

import importlib.util
import re
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.figures import CARD, channel_heatmap, pixels, timeline, word_length_heatmap
from adapt.trace import Trace
from adapt.trace.description import flat
from adapt.trace.display import shown_columns, thinned, totals, word_lengths
from adapt.trace.widths import Widths

if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
    raise ImportError("adapt.tensorboard needs TensorBoard: run pip install 'adapt-precision[tensorboard]'")

_METHODS = ("add_scalar", "add_image", "add_histogram_raw", "add_custom_scalars", "add_text")
_SCALARS, _HISTOGRAMS = 400, 50
"""The most points of a line, and histograms, per call of `write`. TensorBoard shows about 1,000 points of a line."""
_CHART_LINES = 10
"""All lines of a run have the same colour in a chart, so more could not be told apart."""

_with_charts: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Timeline:
    """Writes a trace to a TensorBoard writer. Call `write` with the growing trace, say at every epoch's end.

    TensorBoard then shows
        SCALARS         adapt/mean_word_length, adapt/nonzero, adapt/size_ratio and adapt/memory_ratio of the network;
                        adapt_layers/word_length/<layer>, likewise fraction_length, nonzero and the policy's own columns
        CUSTOM SCALARS  charts of ten layers each
        IMAGES          adapt/word_length_heatmap, adapt/timeline; adapt/channels/<layer> by `write_channels`
        HISTOGRAMS      adapt/word_length: how many layers have which word length
        HPARAMS, TEXT   the settings of the run, by `describe`

    A line gets points where its value changes, at most a few hundred per call. Values that are not finite are left out.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`; for a Lightning `TensorBoardLogger` its `.experiment`.
        after: the last step already in the writer's folder, when resuming a run there.
        charts: whether to define the custom-scalar charts. A writer accepts only one definition, so turn this off if
            you write your own. The charts show the layers of the first call.
        internals: whether to draw lookback, resolution, diversity and divergence too, on which AdaPT's decisions rest.

    Raises:
        TypeError: `writer` is not a SummaryWriter.
    """

    def __init__(self, writer: Any, *, after: int = -1, charts: bool = True, internals: bool = False) -> None:
        missing = [name for name in _METHODS if not callable(getattr(writer, name, None))]
        if missing:
            hint = ": pass its .experiment" if hasattr(writer, "experiment") else ""
            raise TypeError(
                f"writer must be a SummaryWriter, but {type(writer).__name__} has no {' and no '.join(missing)}{hint}"
            )
        self._writer = writer
        self._after = self._drawn = int(after)
        self._charts, self._internals = charts, internals
        self._lines: dict[str, tuple[int, int]] = {}  # by tag: the last step that was seen, and the last written

    def write(self, trace: Trace, widths: Widths | None = None) -> None:
        """Write the new rows of the trace, and pictures of the whole trace; nothing if no row is new.

        Args:
            trace: the trace so far.
            widths: for learned widths, the word lengths by channel, `learner.widths`.
        """
        if not len(trace) or trace.step[-1] <= self._drawn:
            return
        for name, values in totals(trace, widths).items():
            self._write_line(f"adapt/{name}", trace.step, values, to_the_end=True)
        self.write_layers(trace, widths, to_the_end=True)
        self.draw(trace)

    def write_layers(self, trace: Trace, widths: Widths | None = None, *, to_the_end: bool = False) -> None:
        """Write only the lines of the layers; this may be called often.

        Args:
            trace, widths: as in `write`.
            to_the_end: whether to extend lines that have not changed to the present step.
        """
        if not len(trace):
            return
        if self._charts and self._writer not in _with_charts:
            self._write_charts(trace)
        for name in shown_columns(trace, internals=self._internals):
            is_exact = name == "word_length" and widths is not None
            values = word_lengths(trace, widths) if is_exact else trace[name]
            for layer, line in zip(trace.layers, values.T, strict=True):
                self._write_line(_tag(name, layer), trace.step, line, to_the_end)
        if widths is not None and len(widths):
            means = widths.means_at(trace.step)
            for name, line in zip(widths.names, means.T, strict=True):
                if name not in trace.layers:
                    self._write_line(_tag("word_length", name), trace.step, line, to_the_end)

    def draw(self, trace: Trace) -> None:
        """Write histograms of the new rows, and pictures of the whole trace; nothing if no row is new."""
        first = int(np.searchsorted(trace.step, self._drawn, side="right"))
        if first == len(trace):
            return
        self._write_histograms(trace, first)
        last = int(trace.step[-1])
        for tag, draw in (("word_length_heatmap", word_length_heatmap), ("timeline", timeline)):
            self._writer.add_image(f"adapt/{tag}", pixels(draw(trace, CARD)), last, dataformats="HWC")
        self._drawn = last

    def write_channels(self, step: NDArray[np.int64], word_lengths: Mapping[str, NDArray[np.integer]]) -> None:
        """Draw the word length of each channel of these layers as the pictures adapt/channels/<layer>.

        For learned bit widths: `write_channels(learner.widths.step, {name: learner.widths.of(name)})`.

        Args:
            step: optimizer step of each row, int [rows].
            word_lengths: bits, int [rows, channels], by the layers' names.
        """
        if len(step):
            for name, lengths in word_lengths.items():
                picture = pixels(channel_heatmap(step, lengths, name, CARD))
                self._writer.add_image(f"adapt/channels/{name}", picture, int(step[-1]), dataformats="HWC")

    def describe(self, made: Mapping[str, object]) -> None:
        """Show the settings of the run as the text adapt/run and, with torch's writer, as hyperparameters.

        Args:
            made: policy, options, versions and the like, by name; values may be nested mappings.
        """
        made = flat(made, ".")
        lines = [f"| {name} | {_cell(value)} |" for name, value in made.items()]
        self._writer.add_text("adapt/run", "\n".join(["| | |", "|---|---|", *lines]))
        if type(self._writer).__module__.startswith("torch."):
            from torch.utils.tensorboard.summary import hparams

            plain = {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in made.items()}
            metrics = dict.fromkeys(("adapt/mean_word_length", "adapt/nonzero", "adapt/size_ratio"), 0.0)
            # `add_hparams` would open a second event file, and TensorBoard would stop reading the first.
            for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)

    def _write_charts(self, trace: Trace) -> None:
        layout: dict[str, dict[str, list[Any]]] = {}
        for name in shown_columns(trace, internals=self._internals):
            charts = layout[name.replace("_", " ")] = {}
            for start in range(0, len(trace.layers), _CHART_LINES):
                layers = trace.layers[start : start + _CHART_LINES]
                # TensorBoard reads a chart's tags as regular expressions that match from the beginning.
                tags = [f"^{re.escape(_tag(name, layer))}$" for layer in layers]
                charts[f"layers {start + 1} to {start + len(layers)}"] = ["Multiline", tags]
        self._writer.add_custom_scalars(layout)
        _with_charts.add(self._writer)

    def _write_line(self, tag: str, steps: NDArray[np.int64], values: NDArray[Any], to_the_end: bool) -> None:
        """Write the points of a line at which its value changes, and the last one if `to_the_end`.

        TensorBoard draws straight lines between points, so a jump needs a point on either side.
        """
        seen, written = self._lines.get(tag, (self._after, self._after))
        first = int(np.searchsorted(steps, seen, side="right"))
        # The row before the new ones may have been left out as one of many equal points, but may be needed now.
        start = max(first - 1, 0)
        rows = np.union1d(start, thinned(start, len(steps), _SCALARS))
        chosen = values[rows]
        same = (chosen[1:] == chosen[:-1]) | ((chosen[1:] != chosen[1:]) & (chosen[:-1] != chosen[:-1]))
        turns = np.zeros(len(rows), np.bool_)
        turns[1:] |= ~same
        turns[:-1] |= ~same
        turns[0] |= first == 0
        turns[-1] |= to_the_end
        turns &= np.isfinite(chosen) & (steps[rows] > written)
        for step, value in zip(steps[rows[turns]].tolist(), chosen[turns].tolist(), strict=True):
            self._writer.add_scalar(tag, value, step)
            written = step
        self._lines[tag] = int(steps[-1]), written

    def _write_histograms(self, trace: Trace, first: int) -> None:
        for row in thinned(first, len(trace), _HISTOGRAMS).tolist():
            lengths = trace.word_length[row].astype(np.int64)
            low, high = int(lengths.min()), int(lengths.max())
            self._writer.add_histogram_raw(
                "adapt/word_length",
                # Bins reach half a bit to either side, so that bars are centred on whole bits.
                min=low - 0.5,
                max=high + 0.5,
                num=lengths.size,
                sum=int(lengths.sum()),
                sum_squares=int((lengths**2).sum()),
                bucket_limits=(np.arange(low, high + 1) + 0.5).tolist(),
                bucket_counts=np.bincount(lengths - low).tolist(),
                global_step=int(trace.step[row]),
            )


def _tag(column: str, layer: str) -> str:
    return f"adapt_layers/{column}/{layer}"


def _cell(value: object) -> str:
    """Return a value as a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
