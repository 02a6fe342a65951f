"""What happened to every layer's precision, step by step; and the file that keeps it."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from adapt.trace import archive, columns
from adapt.trace.columns import COLUMNS, LAYOUT

VERSION = 1


class Trace:
    """The formats of every layer over a training run. A row describes the state after one optimizer step.

    Row i belongs to optimizer step `trace.step[i]` and holds the formats and the quantised weights that the next
    forward pass sees. The fields are read-only NumPy arrays [rows, layers] that can be read at any time; an array
    read earlier keeps the rows that it had.

    Args:
        layers: the layers' weight names, unique and printable, in column order.
        numel: how many weights each layer has, one non-negative integer per layer, not all zero.

    Raises:
        TypeError, ValueError: the names or sizes are not as described.
    """

    def __init__(self, layers: Sequence[str], numel: ArrayLike) -> None:
        self._layers = columns.checked_names(layers)
        self._numel = columns.checked_sizes(numel, len(self._layers))
        if not self._numel.any():
            raise ValueError("numel is zero for every layer: a trace needs at least one weight")
        self._rows = 0
        self._steps = np.empty(0, dtype="<i8")
        self._columns = {name: np.empty((0, len(self._layers)), dtype=column.dtype) for name, column in COLUMNS.items()}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' weight names, in column order."""
        return self._layers

    @property
    def numel(self) -> NDArray[np.int64]:
        """Number of weights, int64 [layers]."""
        return _read_only(self._numel)

    @property
    def step(self) -> NDArray[np.int64]:
        """Optimizer step of each row, int64 [rows], strictly increasing."""
        return _read_only(self._steps[: self._rows])

    @property
    def word_length(self) -> NDArray[np.int16]:
        """WL, bits, int16 [rows, layers]."""
        return self._read("word_length")

    @property
    def fraction_length(self) -> NDArray[np.int16]:
        """FL, bits, int16 [rows, layers]; 0 beside a word length of 32 where the layer runs in float32."""
        return self._read("fraction_length")

    @property
    def nonzero(self) -> NDArray[np.float32]:
        """Share of the quantised weights that are not zero, 0 to 1, float32 [rows, layers]."""
        return self._read("nonzero")

    @property
    def lookback(self) -> NDArray[np.float32]:
        """Gradients in a full window (before rounding up), float32 [rows, layers]; 0 where no window is kept."""
        return self._read("lookback")

    @property
    def resolution(self) -> NDArray[np.int32]:
        """Histogram bins, int32 [rows, layers]; 0 where no histogram is taken."""
        return self._read("resolution")

    @property
    def diversity(self) -> NDArray[np.float32]:
        """AdaPT eq. 3, Δs of the current window, float32 [rows, layers]; ∞ where the window has no direction."""
        return self._read("diversity")

    @property
    def divergence(self) -> NDArray[np.float32]:
        """AdaPT eq. 1, bits, at the layer's last switch, float32 [rows, layers]; NaN before its first one."""
        return self._read("divergence")

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"Trace({len(self.layers)} layers, {len(self)} rows)"

    def append(
        self,
        step: int | ArrayLike,
        *,
        word_length: ArrayLike,
        fraction_length: ArrayLike,
        nonzero: ArrayLike,
        lookback: ArrayLike = 0.0,
        resolution: ArrayLike = 0,
        diversity: ArrayLike = math.inf,
        divergence: ArrayLike = math.nan,
    ) -> None:
        """Add one row, or a block of rows at once. Either everything is added or nothing.

        Args:
            step: the optimizer step of the row, or int [rows] for a block; above every step already there.
            word_length, …: one value for all, one per layer [layers], or a block [rows, layers]. The defaults
                describe a policy that keeps no window and takes no histogram.

        Raises:
            TypeError: lengths, steps or resolutions that are not integers.
            ValueError: a shape that does not fit, a value outside its range, or a step that does not increase.
        """
        steps = columns.checked_steps(step, self._steps[self._rows - 1] if self._rows else -1)
        given = {
            "word_length": word_length,
            "fraction_length": fraction_length,
            "nonzero": nonzero,
            "lookback": lookback,
            "resolution": resolution,
            "diversity": diversity,
            "divergence": divergence,
        }
        shapes = ((), (len(self._layers),), (len(steps), len(self._layers)))
        values = {name: columns.checked_values(name, value, shapes) for name, value in given.items()}
        start, stop = self._rows, self._rows + len(steps)
        self._reserve(stop)
        self._steps[start:stop] = steps
        with np.errstate(over="ignore", under="ignore"):
            for name, value in values.items():
                self._columns[name][start:stop] = value
        self._rows = stop

    def add_layers(self, layers: Sequence[str], numel: ArrayLike) -> None:
        """Add columns on the right for layers that join the run now, as after `add_param_group`.

        The rows already there say that the new layers ran in float32, as they did, so that costs come out right:
        word length 32, fraction length 0, no zeros, neither window nor histogram.

        Raises:
            TypeError, ValueError: as the constructor; a name that is there already.
        """
        names = columns.checked_names([*self._layers, *columns.checked_names(layers)])
        sizes = columns.checked_sizes(numel, len(names) - len(self._layers))
        for name, column in COLUMNS.items():
            earlier = np.full((self._rows, len(sizes)), column.float32, dtype=column.dtype)
            self._columns[name] = np.concatenate([self._columns[name][: self._rows], earlier], axis=1)
        self._steps = self._steps[: self._rows].copy()
        self._layers, self._numel = names, np.concatenate([self._numel, sizes])

    def reordered(self, layers: Sequence[str]) -> Self:
        """The same trace with its columns in another order.

        Raises:
            ValueError: the names are not exactly those of the layers.
        """
        if sorted(layers) != sorted(self._layers):
            raise ValueError(f"layers must be {list(self._layers)} in another order, got {list(layers)!r:.200}")
        places = [self._layers.index(name) for name in layers]
        arrays = {name: array if array.ndim == 1 else array[:, places] for name, array in self._arrays().items()}
        return self._from_arrays(tuple(layers), {**arrays, "numel": self._numel[places]})

    def mean_word_length(self) -> NDArray[np.float64]:
        """Word length of the average weight, bits, float64 [rows]: the layers' word lengths weighted by numel."""
        return np.asarray(self.word_length @ (self._numel / self._numel.sum()), dtype=np.float64)

    def switches(self) -> NDArray[np.bool_]:
        """Where a layer's format differs from the row before, bool [rows, layers]; the first row is all False."""
        switched = np.zeros((self._rows, len(self._layers)), dtype=np.bool_)
        for lengths in (self.word_length, self.fraction_length):
            switched[1:] |= lengths[1:] != lengths[:-1]
        return switched

    def state_dict(self) -> dict[str, Any]:
        """A copy as plain integers, strings and tensors: what `torch.load(…, weights_only=True)` reads back."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}
        return {"version": VERSION, "layers": list(self._layers), **tensors}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The trace that `state_dict` described.

        Raises:
            TypeError, ValueError: the state is not one of a trace, or of another version.
        """
        arrays = archive.from_state(state, LAYOUT, version=VERSION)
        return cls._from_arrays(state["layers"], arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file that needs no pickle. The file appears whole or not at all.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        layers = np.array(self._layers, dtype="<U")
        archive.write(Path(path), {"layers": layers, **self._arrays()}, version=VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote. Nothing in the file is trusted, and nothing in it is executed.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is not a whole trace of this version; the message names the file and what is wrong.
        """
        path = Path(path)
        try:
            arrays = archive.read(path, LAYOUT, version=VERSION)
            return cls._from_arrays(arrays.pop("layers").tolist(), arrays)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a readable trace: {error}") from error

    @classmethod
    def _from_arrays(cls, layers: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
        trace = cls(layers, arrays["numel"])
        steps = arrays["step"]
        if steps.ndim != 1:
            raise ValueError(f"step must have one dimension, got the shape {steps.shape}")
        for name in COLUMNS:
            expected = (len(steps), len(trace.layers))
            if arrays[name].shape != expected:
                raise ValueError(f"{name} has the shape {arrays[name].shape}, step and layers ask for {expected}")
        trace.append(steps, **{name: arrays[name] for name in COLUMNS})
        return trace

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "numel": self._numel,
            "step": self._steps[: self._rows],
            **{name: column[: self._rows] for name, column in self._columns.items()},
        }

    def _read(self, name: str) -> NDArray[Any]:
        return _read_only(self._columns[name][: self._rows])

    def _reserve(self, rows: int) -> None:
        """Rows are copied when the room grows by half, so an appended row costs the same however long the run is."""
        capacity = len(self._steps)
        if rows <= capacity:
            return
        capacity = max(rows, capacity + capacity // 2, 64)
        for name, column in self._columns.items():
            grown = np.empty((capacity, column.shape[1]), dtype=column.dtype)
            grown[: self._rows] = column[: self._rows]
            self._columns[name] = grown
        steps = np.empty(capacity, dtype=self._steps.dtype)
        steps[: self._rows] = self._steps[: self._rows]
        self._steps = steps


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
