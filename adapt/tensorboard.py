"""A trace in TensorBoard: lines, pictures and histograms."""

import importlib.util
import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.figures import channel_heatmap, pixels, thinned, timeline, word_length_heatmap
from adapt.trace import Trace
from adapt.trace.columns import COLUMNS

if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
    raise ImportError("adapt.tensorboard needs TensorBoard: run pip install 'adapt-precision[tensorboard]'")

_METHODS = ("add_scalar", "add_image", "add_histogram_raw", "add_custom_scalars")
_SCALARS, _HISTOGRAMS = 400, 50
"""TensorBoard shows about 1,000 points of a line; a trace that is written at every epoch's end may pass these."""

_with_charts: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Timeline:
    """Writes a trace to a TensorBoard writer. Call `write` with the growing trace, say at every epoch's end.

    TensorBoard then shows
        SCALARS         word_length/<layer>, fraction_length/…, nonzero/…, lookback/…, resolution/…, diversity/…
                        and divergence/…, one section per quantity
        CUSTOM SCALARS  one chart per quantity with all layers in it
        IMAGES          adapt/word_length_heatmap, adapt/timeline; adapt/channels/<layer> by `write_channels`
        HISTOGRAMS      adapt/word_length: how many layers have which word length

    Lines and histograms are thinned to a few hundred points; values that are not finite are left out.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`; of a Lightning `TensorBoardLogger` its `.experiment`.
        after: rows up to this step are there already, as when a run is resumed in the same folder.
        charts: whether to describe the custom-scalar charts. A writer takes one such description; turn this off
            where you write your own.
        lines: whether to write the scalars. Turn this off where a logger writes them while the run goes on.

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
        """Write the rows that came after the last one written, and the pictures of the whole trace.

        Where there are no new rows nothing is written.
        """
        first = int(np.searchsorted(trace.step, self._last, side="right"))
        if first == len(trace):
            return
        if self._charts and self._writer not in _with_charts:
            self._write_charts()
        if self._lines:
            self._write_scalars(trace, first)
        self._write_histograms(trace, first)
        last = int(trace.step[-1])
        for tag, figure in (("word_length_heatmap", word_length_heatmap(trace)), ("timeline", timeline(trace))):
            self._writer.add_image(f"adapt/{tag}", pixels(figure), last, dataformats="HWC")
        self._last = last

    def write_channels(self, step: NDArray[np.int64], word_lengths: Mapping[str, NDArray[np.integer]]) -> None:
        """Write a picture adapt/channels/<layer> of the word length of each of its channels, for learned bit widths.

        With a learner: `write_channels(learner.widths.step, {name: learner.widths.of(name)})`.

        Args:
            step: optimizer step of each row, int [rows].
            word_lengths: by the layers' names, bits, int [rows, channels].
        """
        if len(step):
            for name, lengths in word_lengths.items():
                picture = pixels(channel_heatmap(step, lengths, name))
                self._writer.add_image(f"adapt/channels/{name}", picture, int(step[-1]), dataformats="HWC")

    def _write_charts(self) -> None:
        # Tags in a chart are regular expressions, matched from their beginning; this one also covers layers that
        # join the run later, and no layer's name needs to be escaped.
        charts = {field.replace("_", " "): ["Multiline", [f"^{field}/"]] for field in COLUMNS}
        self._writer.add_custom_scalars({"adapt": charts})
        _with_charts.add(self._writer)

    def _write_scalars(self, trace: Trace, first: int) -> None:
        rows = thinned(first, len(trace), _SCALARS)
        steps = trace.step[rows].tolist()
        for field in COLUMNS:
            values = getattr(trace, field)[rows].T.tolist()
            for layer, line in zip(trace.layers, values, strict=True):
                for step, value in zip(steps, line, strict=True):
                    if math.isfinite(value):
                        self._writer.add_scalar(f"{field}/{layer}", value, step)

    def _write_histograms(self, trace: Trace, first: int) -> None:
        for row in thinned(first, len(trace), _HISTOGRAMS).tolist():
            lengths = trace.word_length[row].astype(np.int64)
            low, high = int(lengths.min()), int(lengths.max())
            self._writer.add_histogram_raw(
                "adapt/word_length",
                # Half a bit to either side: bars that stand on whole bits.
                min=low - 0.5,
                max=high + 0.5,
                num=lengths.size,
                sum=int(lengths.sum()),
                sum_squares=int((lengths**2).sum()),
                bucket_limits=(np.arange(low, high + 1) + 0.5).tolist(),
                bucket_counts=np.bincount(lengths - low).tolist(),
                global_step=int(trace.step[row]),
            )
