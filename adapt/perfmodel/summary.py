"""All figures of a run, from its trace; during training, an update only reads the new rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapt.perfmodel.checked_arrays import Array, as_operations, as_rows, as_weights
from adapt.perfmodel.ratios import inference_speedup, memory_ratio, size_ratio
from adapt.perfmodel.training import Form, OtherRun, switching_cost, training_speedup


class TraceLike(Protocol):
    """The part of `adapt.Trace` that the summary reads."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Weight names, in column order."""

    @property
    def numel(self) -> NDArray[np.int64]:
        """Weights of each layer [layers]."""

    @property
    def step(self) -> NDArray[np.int64]:
        """Optimizer step of each row [rows]."""

    @property
    def word_length(self) -> NDArray[np.int16]:
        """Bits [rows, layers]."""

    @property
    def nonzero(self) -> NDArray[np.float32]:
        """Share of weights that are not zero [rows, layers]."""

    @property
    def lookback(self) -> NDArray[np.float32]:
        """Gradients in a full window [rows, layers]; 0 if there is no window."""

    @property
    def resolution(self) -> NDArray[np.int32]:
        """Histogram bins [rows, layers]; 0 if there is no histogram."""


@dataclass(frozen=True)
class Summary:
    """The figures of merit of a run, as in the tables of AdaPT."""

    training_speedup: float
    """SU over the run so far; above 1 is cheaper than the other run."""
    inference_speedup: float
    """SU of the network at the last row; above 1 is faster than float32."""
    size_ratio: float
    """SZ of the network at the last row; below 1 is smaller than float32."""
    memory_ratio: float
    """MEM, mean over the run so far; from 1 to 2 times float32 training."""
    mean_word_length: float
    """Word length averaged over all weights at the last row, in bits."""
    nonzero: float
    """Share of weights that are not zero at the last row, 0 to 1."""
    run_mean_word_length: float
    """Word length averaged over all weights and over the run so far, in bits."""
    run_nonzero: float
    """Share of weights that are not zero, mean over the run so far, 0 to 1."""


class RunningSummary:
    """The figures of a run whose trace may still grow: `RunningSummary(operations, batch_size=128).update(trace)`.

    An update reads only the new rows. All rows count the same, so a trace of every k-th step is enough.

    Args:
        operations: multiply-adds per sample, by layer name, from `operations(model, batch)`; names that the trace
            lacks are ignored.
        batch_size: samples in one micro-batch.
        accumulation: micro-batches per optimizer step.
        steps: optimizer steps that the rows together represent, for comparison with an `other` run of a different
            length; by default from the spacing of the trace's steps.
        other: the run to compare training with; by default float32 training with the same steps and batches.
        backward_bits, backward_factor: as in `training_cost`.
        form: "physical", or "paper" for the printed form, which ignores the layers' sizes.

    Raises:
        TypeError: an argument is not numeric, or operations have no names.
        ValueError: a number is out of range.
    """

    # The number of rows read, and the sums over them of the overhead, sp·WL, WL and sp.
    _rows: int
    _overhead: float
    _bits: Array
    _word_length: Array
    _nonzero: Array

    def __init__(
        self,
        operations: Mapping[str, int],
        *,
        batch_size: int,
        accumulation: int = 1,
        steps: int | None = None,
        other: OtherRun | None = None,
        backward_bits: float = 32,
        backward_factor: float | None = None,
        form: Form = "physical",
    ) -> None:
        if not isinstance(operations, Mapping):
            raise TypeError(f"operations must map layer names to multiply-adds, got {operations!r:.80}")
        self._operations = dict(operations)
        self._accumulation = accumulation
        self._steps = steps
        self._by_size = form == "physical"
        self._training_speedup = partial(
            training_speedup,
            batch_size=batch_size,
            accumulation=accumulation,
            other=other,
            backward_bits=backward_bits,
            backward_factor=backward_factor,
            form=form,
        )
        # Refuses invalid settings now instead of at the first row of the training.
        self._training_speedup(as_operations(self._operations), 32, 1.0, steps=steps)
        self._start(())

    def update(self, trace: TraceLike) -> Summary:
        """Read the trace's new rows and return the figures of the run so far.

        Raises:
            ValueError: the trace has no rows or fewer than at the last update, or `operations` lacks a layer.
        """
        if trace.layers != self._layers:
            self._start(trace.layers)
        rows = len(trace.step)
        if rows < max(self._rows, 1):
            raise ValueError(
                f"trace has {rows} rows, but {self._rows} were read before: it must have rows and keep them"
            )
        if rows > self._rows:
            self._add(trace, slice(self._rows, rows))
            self._rows = rows
        lengths, shares = as_rows(trace.word_length[-1:], trace.nonzero[-1:])
        numel = trace.numel if self._by_size else None
        by_element = as_weights(trace.numel, len(self._layers))
        # Costs and memory are linear in sp·WL, so its mean represents all rows.
        mean_bits = self._bits / rows
        return Summary(
            training_speedup=self._training_speedup(
                self._counts, mean_bits, 1.0, overhead=self._overhead / rows, steps=self._steps or _steps(trace.step)
            ),
            inference_speedup=inference_speedup(self._counts, lengths, shares),
            size_ratio=size_ratio(lengths, shares, numel),
            memory_ratio=memory_ratio(mean_bits, 1.0, numel),
            mean_word_length=float(lengths[-1] @ by_element),
            nonzero=float(shares[-1] @ by_element),
            run_mean_word_length=float(self._word_length @ by_element) / rows,
            run_nonzero=float(self._nonzero @ by_element) / rows,
        )

    def _start(self, layers: tuple[str, ...]) -> None:
        """Start without rows: initially, and whenever layers join the run, which changes every row."""
        missing = [name for name in layers if name not in self._operations]
        if missing:
            raise ValueError(
                f"operations has no entry for the layer {missing[0]!r}: count them with operations(model, batch), and "
                "add 0 for a weight that is in no product"
            )
        self._layers = layers
        self._counts = [self._operations[name] for name in layers]
        self._rows = 0
        self._overhead = 0.0
        self._bits = np.zeros(len(layers))
        self._word_length = np.zeros(len(layers))
        self._nonzero = np.zeros(len(layers))

    def _add(self, trace: TraceLike, new: slice) -> None:
        lengths, shares = as_rows(trace.word_length[new], trace.nonzero[new], len(self._layers))
        self._overhead += switching_cost(
            trace.numel, shares, trace.lookback[new], trace.resolution[new], accumulation=self._accumulation
        )
        self._bits += (lengths * shares).sum(axis=0)
        self._word_length += lengths.sum(axis=0)
        self._nonzero += shares.sum(axis=0)


def _steps(step: NDArray[np.int64]) -> int:
    """Return the number of optimizer steps that evenly spaced rows represent, wherever they begin."""
    rows = len(step)
    return rows if rows < 2 else round(rows * (int(step[-1]) - int(step[0])) / (rows - 1))
