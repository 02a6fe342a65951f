"""The columns of a trace: the values they may hold, and their description in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapt.arguments import is_number
from adapt.trace.archive import LONGEST_TEXT, NUMBERS

T = TypeVar("T", bound=np.generic)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAKEN = ("self", "layers", "columns", "numel", "step", "version", "release")
"""Names that are reserved in files or in `Trace.append`."""


_LIMITS = ("low", "high", "float32", "default", "nan")
"""The fields that describe a column in a file, besides name and type."""


class _Rows(Protocol):
    def __getitem__(self, name: str) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Column(Generic[T]):
    """One number for every row and layer of a trace. `Trace` declares its own; a policy may add more.

    As a class attribute it reads the column of an instance: `trace.word_length` is `trace["word_length"]`.

    Args:
        dtype: NumPy type of the numbers: a signed integer, float32 or float64.
        low, high: the smallest and the largest value, inclusive.
        float32: the value for a layer that runs in float32 and is not observed.
        default: the value of rows without one, in a file that lacks the column or from a caller that does not pass it.
            None if every row must have a value.
        nan: whether NaN is allowed, for "not measured yet". Lightning's loggers leave out such a column.
        doc: the meaning of the numbers and their unit.

    Raises:
        TypeError, ValueError: the type is not supported, or a value is outside the range.
    """

    dtype: type[T]
    low: float
    high: float
    float32: float
    default: float | None = None
    nan: bool = False
    doc: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, type) or np.dtype(self.dtype).name not in NUMBERS:
            raise TypeError(f"dtype must be one of NumPy's {', '.join(NUMBERS)}, got {self.dtype!r:.80}")
        if not isinstance(self.nan, bool) or (self.nan and self.is_integer):
            raise ValueError(f"nan must be True or False, and False for integers, got {self.nan!r:.80}")
        for name in ("low", "high", "float32", "default"):
            object.__setattr__(self, name, self._number(name, getattr(self, name)))
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high, got {self.low:g} and {self.high:g}")
        for name, value in (("float32", self.float32), ("default", self.default)):
            if value is not None and not (self.low <= value <= self.high or (self.nan and value != value)):
                raise ValueError(f"{name} must lie between low and high, or be NaN with nan=True, got {value:g}")
        # help(Trace) shows this for the attribute.
        object.__setattr__(self, "__doc__", f"{self.doc}; {np.dtype(self.dtype)} [rows, layers].")

    def _number(self, name: str, value: object) -> float | None:
        """Return the value as a Python int for a column of integers, otherwise as a float."""
        if value is None and name == "default":
            return None
        try:
            if not is_number(value) or (value != value and name in ("low", "high")):
                raise ValueError("no number")
            if not self.is_integer:
                return float(value)
            limits = np.iinfo(np.dtype(self.dtype))
            if not limits.min <= value <= limits.max or value != int(value):
                raise ValueError(f"no {limits.dtype}")
            return int(value)
        except (ValueError, OverflowError) as error:
            dtype = np.dtype(self.dtype)
            raise ValueError(f"{name} must be a number that {dtype} can hold, got {value!r:.80}") from error

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "_name", name)

    @overload
    def __get__(self, trace: None, owner: type) -> Self: ...
    @overload
    def __get__(self, trace: _Rows, owner: type) -> NDArray[T]: ...
    def __get__(self, trace: _Rows | None, owner: type) -> Self | NDArray[T]:
        return self if trace is None else trace[self._name]  # type: ignore[attr-defined]

    def __set__(self, trace: object, value: object) -> NoReturn:
        raise AttributeError("the columns of a trace are read-only: add rows with append()")

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are integers."""
        return np.dtype(self.dtype).kind == "i"

    def checked(self, name: str, value: ArrayLike, shapes: Sequence[tuple[int, ...]]) -> NDArray[Any]:
        """Return the values as an array of one of these shapes: a scalar, a row, or a block of rows.

        Raises:
            TypeError, ValueError: they have another shape or type, or are outside the column's range.
        """
        values = np.asarray(value)
        if values.shape not in shapes:
            raise ValueError(f"{name} must have the shape {shapes[1]} or {shapes[2]}, got {values.shape}")
        if values.size and values.dtype.kind not in ("iu" if self.is_integer else "iuf"):
            kind = "integers" if self.is_integer else "real numbers"
            raise TypeError(f"{name} must hold {kind}, got the type {values.dtype}")
        inside = (values >= self.low) & (values <= self.high)
        if self.nan:
            inside |= values != values
        # Counting takes a tenth of the time of .all(), and this runs at every optimizer step.
        if np.count_nonzero(inside) != values.size:
            raise ValueError(f"{name} must lie between {self.low:g} and {self.high:g}, got {values[~inside].flat[0]}")
        return values


def packed_column(name: str, column: Column[Any]) -> str:
    """Return a description of a column for `unpacked_column`, without its documentation."""
    limits = {field: getattr(column, field) for field in _LIMITS}
    return json.dumps({"name": name, "dtype": np.dtype(column.dtype).name, **limits})


def unpacked_column(text: str) -> tuple[str, Column[Any]]:
    """Return the name and the column that `packed_column` described.

    Raises:
        ValueError: the text is not such a description.
    """
    try:
        found = json.loads(text)
        name, dtype = found.pop("name"), found.pop("dtype")
        if not isinstance(name, str) or dtype not in NUMBERS or found.keys() != set(_LIMITS):
            raise ValueError("not the fields of a column")
        return name, Column(np.dtype(dtype).type, **found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it describes a column as {text!a:.120}: {error!s:.80}") from error


def check_policy_column(name: object, column: object) -> None:
    """Check a column that a policy adds.

    Raises:
        TypeError, ValueError: the name is not allowed, or the column has no default.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
        raise ValueError(
            "a policy's column must have a name of up to 64 small letters, digits and underscores other than "
            f"{', '.join(_TAKEN)}, got {name!a:.80}"
        )
    if not isinstance(column, Column):
        raise TypeError(f"the policy's column {name} must be an adapt.trace.Column, got {column!r:.80}")
    if column.default is None:
        raise ValueError(f"the policy's column {name} must have a default, for rows that were written before it")


def checked_names(layers: Sequence[str]) -> tuple[str, ...]:
    """Check that the layers' names are unique, printable and not too long, and return them.

    Raises:
        TypeError, ValueError: they are not.
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got the string {layers!s}")
    names = tuple(layers)
    if not names:
        raise ValueError("layers is empty: a trace needs at least one layer")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"layers must hold strings, got {name!r}")
        # Names are printed in terminals, which would execute control characters from a foreign file.
        if not 0 < len(name) <= LONGEST_TEXT or not name.isprintable():
            raise ValueError(f"layers must hold printable names of 1 to {LONGEST_TEXT} characters, got {name[:80]!a}")
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"layers must hold each name once, got {twice!a} twice")
    return names


def checked_sizes(numel: ArrayLike, layers: int) -> NDArray[np.int64]:
    """Return one size for each of `layers` layers, int64 [layers].

    Raises:
        TypeError, ValueError: the sizes are something else.
    """
    sizes = np.asarray(numel)
    if sizes.shape != (layers,):
        raise ValueError(f"numel must hold one size for each of the {layers} layers, got the shape {sizes.shape}")
    if sizes.size and sizes.dtype.kind not in "iu":
        raise TypeError(f"numel must hold integers, got the type {sizes.dtype}")
    if not ((sizes >= 0) & (sizes < 2**48)).all():
        raise ValueError(f"numel must lie between 0 and 2^48, got {sizes.min()} to {sizes.max()}")
    return sizes.astype(np.int64)


def checked_steps(step: int | ArrayLike, last: int) -> NDArray[np.int64]:
    """Check that optimizer steps increase and are above `last`, and return them, int64 [rows].

    Raises:
        TypeError, ValueError: they do not, or are not integers.
    """
    steps = np.asarray(step)
    if steps.dtype.kind not in "iu" and steps.size:
        raise TypeError(f"step must be an integer or an array of them, got the type {steps.dtype}")
    if steps.ndim > 1:
        raise ValueError(f"step must be one integer or one-dimensional, got the shape {steps.shape}")
    steps = np.atleast_1d(steps).astype(np.int64)
    if len(steps) and (steps[0] <= last or np.count_nonzero(steps[1:] <= steps[:-1])):
        raise ValueError(f"step must increase from row to row, got {steps[0]} to {steps[-1]} after {last}")
    return steps
