"""The history of every layer's precision, step by step, and its file."""

# Annotations are not evaluated, so that help() shows ArrayLike instead of its definition.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapt.trace import archive, description
from adapt.trace.archived import Archived
from adapt.trace.columns import (
    Column,
    check_policy_column,
    checked_names,
    checked_sizes,
    checked_steps,
    packed_column,
    unpacked_column,
)
from adapt.trace.standard_columns import STANDARD_COLUMNS, StandardColumns

VERSION = 3
"""1: exactly the first seven standard columns. 2: the file describes every column. 3: and the settings of the run."""

_RUN = "run.json"
"""The member of a file with the settings of the run; no column can have this name."""


class Trace(StandardColumns, Archived):
    """The formats of every layer over a training run. A row describes the state after one optimizer step.

    Row i belongs to optimizer step `trace.step[i]` and describes the formats and the quantised weights that the next
    forward pass sees. The columns are read-only NumPy arrays [rows, layers], read as `trace.word_length` or
    `trace["word_length"]`; columns that a policy added only in the second way. An array that was read earlier keeps its
    rows.

    Args:
        layers: the layers' weight names, unique and printable, in order.
        numel: number of weights of each layer, one non-negative integer per layer, not all zero.
        columns: columns that the policy adds, as in `add_columns`.

    Attributes:
        run: the settings of the run, as numbers, strings, lists and dicts by name: the release of adapt, the policy
            with its hyperparameters (`adapt.switching.from_dict` recreates it), rounding, penalties and all other
            options. Empty if unknown, as in files of earlier versions.

    Raises:
        TypeError, ValueError: the names, sizes or columns are not as described.
    """

    _version, _unreadable = VERSION, "is not a readable trace"

    def __init__(
        self, layers: Sequence[str], numel: ArrayLike, columns: Mapping[str, Column[Any]] | None = None
    ) -> None:
        self._layers = checked_names(layers)
        self._numel = checked_sizes(numel, len(self._layers))
        if not self._numel.any():
            raise ValueError("numel is zero for every layer: a trace needs at least one weight")
        self.run: dict[str, Any] = {}
        self._rows = 0
        self._steps = np.empty(0, dtype=np.int64)
        self._columns = dict(STANDARD_COLUMNS)
        empty = 0, len(self._layers)
        self._values = {name: np.empty(empty, column.dtype) for name, column in STANDARD_COLUMNS.items()}
        self.add_columns(columns or {})

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' weight names, in order."""
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
    def columns(self) -> Mapping[str, Column[Any]]:
        """The definitions of this trace's columns, by name; those that the policy added come last."""
        return MappingProxyType(self._columns)

    @property
    def own_columns(self) -> Mapping[str, Column[Any]]:
        """The columns that the policy added."""
        return MappingProxyType({name: c for name, c in self._columns.items() if name not in STANDARD_COLUMNS})

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column by its name, [rows, layers].

        Raises:
            KeyError: the trace has no such column.
        """
        if name not in self._values:
            raise KeyError(f"the trace has no column {name!r:.80}; it has {', '.join(self._values)}")
        return _read_only(self._values[name][: self._rows])

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"Trace({len(self.layers)} layers, {len(self)} rows)"

    def append(self, step: int | ArrayLike, **values: ArrayLike) -> None:
        """Add one row, or a block of rows at once: either all of it or nothing.

        Args:
            step: the optimizer step of the row, or int [rows] for a block; greater than every step already there.
            values: word_length, fraction_length, nonzero and any other of the `columns`, each as one value for all, one
                per layer [layers], or a block [rows, layers]. Missing columns get their defaults, which describe a
                policy without windows and histograms.

        Raises:
            TypeError: a column is missing or unknown, or lengths, steps or resolutions are not integers.
            ValueError: a shape does not fit, a value is outside its range, or a step does not increase.
        """
        steps = checked_steps(step, self._steps[self._rows - 1] if self._rows else -1)
        given: dict[str, Any] = {name: column.default for name, column in self._columns.items()} | values
        if len(given) > len(self._columns):
            unknown = ", ".join(name for name in values if name not in self._columns)
            raise TypeError(f"the trace has no column {unknown}; it has {', '.join(self._columns)}")
        if any(value is None for value in given.values()):
            missing = ", ".join(name for name, value in given.items() if value is None)
            raise TypeError(f"append() needs a value for {missing}")
        shapes = ((), (len(self._layers),), (len(steps), len(self._layers)))
        rows = {name: column.checked(name, given[name], shapes) for name, column in self._columns.items()}
        start, stop = self._rows, self._rows + len(steps)
        self._reserve(stop)
        self._steps[start:stop] = steps
        with np.errstate(over="ignore", under="ignore"):
            for name, value in rows.items():
                self._values[name][start:stop] = value
        self._rows = stop

    def add_layers(self, layers: Sequence[str], numel: ArrayLike) -> None:
        """Add layers that join the run now, as after `add_param_group`.

        In the existing rows the new layers have float32, in which they ran, so that costs are right: word length 32,
        fraction length 0, no zeros, neither window nor histogram.

        Raises:
            TypeError, ValueError: as in the constructor, or a name exists already.
        """
        names = checked_names([*self._layers, *checked_names(layers)])
        sizes = checked_sizes(numel, len(names) - len(self._layers))
        for name, column in self._columns.items():
            earlier = np.full((self._rows, len(sizes)), column.float32, dtype=column.dtype)
            self._values[name] = np.concatenate([self._values[name][: self._rows], earlier], axis=1)
        self._steps = self._steps[: self._rows].copy()
        self._layers, self._numel = names, np.concatenate([self._numel, sizes])

    def add_columns(self, columns: Mapping[str, Column[Any]]) -> None:
        """Add a policy's own columns, with their defaults in the existing rows.

        A policy's column that exists already keeps its values and is checked by the new definition from now on.

        Args:
            columns: the columns by name. Each needs a default, and a unique name of lower-case letters, digits and
                underscores.

        Raises:
            TypeError, ValueError: a name or a column is not as described, or the existing values do not fit the new
                definition. Nothing is added then.
        """
        added = {}
        for name, column in columns.items():
            check_policy_column(name, column)
            if name in STANDARD_COLUMNS:
                raise ValueError(f"a policy's column must have a new name: every trace has a column {name}")
            shape = (self._rows, len(self._layers))
            there = self[name] if name in self._values else np.full(shape, column.default)
            values = column.checked(name, there, ((), (), shape))
            added[name] = np.resize(values.astype(column.dtype), (len(self._steps), len(self._layers)))
        self._columns |= columns
        self._values |= added

    def reordered(self, layers: Sequence[str]) -> Self:
        """Return the same trace with its layers in another order.

        Raises:
            ValueError: `layers` are not exactly the names of the layers.
        """
        if sorted(layers) != sorted(self._layers):
            raise ValueError(f"layers must be {list(self._layers)} in another order, got {list(layers)!r:.200}")
        places = [self._layers.index(name) for name in layers]
        trace = type(self)(layers, self._numel[places], self.own_columns)
        trace.run = self.run
        trace.append(self.step, **{name: self[name][:, places] for name in self._columns})
        return trace

    def mean_word_length(self) -> NDArray[np.float64]:
        """Return the layers' word lengths weighted by numel, in bits per weight, float64 [rows]."""
        return np.asarray(self.word_length @ (self._numel / self._numel.sum()), dtype=np.float64)

    def switches(self) -> NDArray[np.bool_]:
        """Return where a format differs from the previous row, bool [rows, layers]; the first row is all False."""
        switched = np.zeros((self._rows, len(self._layers)), dtype=np.bool_)
        for lengths in (self.word_length, self.fraction_length):
            switched[1:] |= lengths[1:] != lengths[:-1]
        return switched

    def _content(self) -> archive.Content:
        return {
            "layers": list(self._layers),
            "columns": [packed_column(name, column) for name, column in self._columns.items()],
            _RUN: description.packed(self.run),
            "numel": self._numel,
            "step": self._steps[: self._rows],
            **{name: values[: self._rows] for name, values in self._values.items()},
        }

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> Self:
        """Return the trace that `_content` described; missing columns get their defaults."""
        layout: dict[str, Any] = {
            "layers": (None, ("layers",)),
            "numel": (np.dtype(np.int64), ("layers",)),
            "step": (np.dtype(np.int64), ("rows",)),
        }
        if _RUN in content:
            layout[_RUN] = (None, ("pieces",))
        if "columns" in content:
            layout["columns"] = (None, ("columns",))
            archive.check({"columns": content["columns"]}, {"columns": layout["columns"]})
            described = dict(map(unpacked_column, content["columns"]))
        else:
            described = {name: column for name, column in STANDARD_COLUMNS.items() if name in content}
        required = {name: column for name, column in STANDARD_COLUMNS.items() if column.default is None}
        # Known columns use their present definition, whatever the file says.
        stored = required | {name: STANDARD_COLUMNS.get(name, column) for name, column in described.items()}
        layout |= {name: (np.dtype(column.dtype), ("rows", "layers")) for name, column in stored.items()}
        archive.check(content, layout)
        own = {name: column for name, column in stored.items() if name not in STANDARD_COLUMNS}
        trace = cls(content["layers"], content["numel"], own)
        trace.append(content["step"], **{name: content[name] for name in stored})
        trace.run = description.unpacked(content[_RUN]) if _RUN in content else {}
        return trace

    def _reserve(self, rows: int) -> None:
        """Make room for this many rows. Growing by half makes the cost per row independent of the run's length."""
        capacity = len(self._steps)
        if rows > capacity:
            capacity = max(rows, capacity + capacity // 2, 64)
            self._steps = np.resize(self._steps[: self._rows], capacity)
            for name, values in self._values.items():
                self._values[name] = np.resize(values[: self._rows], (capacity, len(self._layers)))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
