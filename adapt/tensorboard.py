"""A trace in TensorBoard: lines, pictures and histograms."""

import importlib.util
import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.figures import channel_heatmap, pixels, timeline, word_length_heatmap
from adapt.trace import Trace
from adapt.trace.thinning import thinned

if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
    raise ImportError("adapt.tensorboard needs TensorBoard: run pip install 'adapt-precision[tensorboard]'")

_METHODS = ("add_scalar", "add_image", "add_histogram_raw", "add_custom_scalars")
_SCALARS, _HISTOGRAMS = 400, 50
"""Points of a line and histograms in one call of `write`. TensorBoard shows about 1,000 points of a line."""

_with_charts: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Timeline:
    """Writes a trace to a TensorBoard writer. Call `write` with the growing trace, say at every epoch's end.

    TensorBoard then shows
        SCALARS         word_length/<layer>, fraction_length/<layer> and so on: one section per column of the trace,
                        the policy's own included
        CUSTOM SCALARS  one chart per column with all layers in it
        IMAGES          adapt/word_length_heatmap, adapt/timeline; adapt/channels/<layer> by `write_channels`
        HISTOGRAMS      adapt/word_length: how many layers have which word length

    Lines and histograms are thinned to a few hundred points. Values that are not finite are left out.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`; of a Lightning `TensorBoardLogger` its `.experiment`.
        after: the last step that the writer's folder already has, when a run is resumed there.
        charts: whether to describe the custom-scalar charts. A writer takes only one such description, so turn this
            off if you write your own.
        lines: whether to write the scalars. Turn this off if a logger writes them during the run.

    Raises:
        TypeError: the writer is not one.
    """

    def __init__(self, writer: Any, *, after: int = -1, charts: bool = True, lines: bool = True) -> None:
        missing = [name for name in _METHODS if not callable(getattr(writer, name, None))]
        if missing:
            hint = ": pass its .experiment" if hasattr(writer, "experiment") else ""
            raise TypeError(
                f"writer must be a SummaryWriter, but {type(writer).__name__} has no {' and no '.join(missing)}{hint}"
            )
        self._writer = writer
        self._last = int(after)
        self._charts, self._lines = charts, lines

    def write(self, trace: Trace) -> None:
        """Write the rows after the last one written, and pictures of the whole trace; nothing if no row is new."""
        first = int(np.searchsorted(trace.step, self._last, side="right"))
        if first == len(trace):
            return
        if self._charts and self._writer not in _with_charts:
            self._write_charts(trace)
        if self._lines:
            self._write_scalars(trace, first)
        self._write_histograms(trace, first)
        last = int(trace.step[-1])
        for tag, figure in (("word_length_heatmap", word_length_heatmap(trace)), ("timeline", timeline(trace))):
            self._writer.add_image(f"adapt/{tag}", pixels(figure), last, dataformats="HWC")
        self._last = last

    def write_channels(self, step: NDArray[np.int64], word_lengths: Mapping[str, NDArray[np.integer]]) -> None:
        """Draw the word length of each channel of these layers as the pictures adapt/channels/<layer>.

        With learned bit widths: `write_channels(learner.widths.step, {name: learner.widths.of(name)})`.

        Args:
            step: optimizer step of each row, int [rows].
            word_lengths: bits, int [rows, channels], by the layers' names.
        """
        if len(step):
            for name, lengths in word_lengths.items():
                picture = pixels(channel_heatmap(step, lengths, name))
                self._writer.add_image(f"adapt/channels/{name}", picture, int(step[-1]), dataformats="HWC")

    def _write_charts(self, trace: Trace) -> None:
        # The tags of a chart are regular expressions that match from the beginning. This one also covers layers that
        # join the run later, and no layer's name needs to be escaped.
        charts = {name.replace("_", " "): ["Multiline", [f"^{name}/"]] for name in trace.columns}
        self._writer.add_custom_scalars({"adapt": charts})
        _with_charts.add(self._writer)

    def _write_scalars(self, trace: Trace, first: int) -> None:
        rows = thinned(first, len(trace), _SCALARS)
        steps = trace.step[rows].tolist()
        for name in trace.columns:
            values = trace[name][rows].T.tolist()
            for layer, line in zip(trace.layers, values, strict=True):
                for step, value in zip(steps, line, strict=True):
                    if math.isfinite(value):
                        self._writer.add_scalar(f"{name}/{layer}", value, step)

    def _write_histograms(self, trace: Trace, first: int) -> None:
        for row in thinned(first, len(trace), _HISTOGRAMS).tolist():
            lengths = trace.word_length[row].astype(np.int64)
            low, high = int(lengths.min()), int(lengths.max())
            self._writer.add_histogram_raw(
                "adapt/word_length",
                # Half a bit to either side centres the bars on whole bits.
                min=low - 0.5,
                max=high + 0.5,
                num=lengths.size,
                sum=int(lengths.sum()),
                sum_squares=int((lengths**2).sum()),
                bucket_limits=(np.arange(low, high + 1) + 0.5).tolist(),
                bucket_counts=np.bincount(lengths - low).tolist(),
                global_step=int(trace.step[row]),
            )
