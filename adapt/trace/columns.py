"""The columns of a trace: what may stand in them, and how a file holds them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapt.numerics import HIGHEST_FRACTION, LONGEST_WORD, LOWEST_FRACTION
from adapt.trace import archive
from adapt.trace.archive import LONGEST_TEXT


class Column(NamedTuple):
    """One number for every layer and row, between `low` and `high`."""

    dtype: np.dtype[Any]
    low: float
    high: float
    float32: float
    """The value that describes a layer which ran in float32 and was not watched."""
    missing: bool = False
    """Whether NaN, for "not measured yet", is a value."""


COLUMNS = {
    "word_length": Column(np.dtype("<i2"), 1, LONGEST_WORD, 32),
    "fraction_length": Column(np.dtype("<i2"), LOWEST_FRACTION, HIGHEST_FRACTION, 0),
    "nonzero": Column(np.dtype("<f4"), 0, 1, 1),
    "lookback": Column(np.dtype("<f4"), 0, 2**31, 0),
    "resolution": Column(np.dtype("<i4"), 0, 2**31 - 1, 0),
    "diversity": Column(np.dtype("<f4"), 0, math.inf, math.inf),
    # A sum of many logarithms may end a rounding error below zero.
    "divergence": Column(np.dtype("<f4"), -1e-6, 1e9, math.nan, missing=True),
}

LAYOUT: archive.Layout = {
    "layers": (None, ("layers",)),
    "numel": (np.dtype("<i8"), ("layers",)),
    "step": (np.dtype("<i8"), ("rows",)),
    **{name: (column.dtype, ("rows", "layers")) for name, column in COLUMNS.items()},
}


def checked_names(layers: Sequence[str]) -> tuple[str, ...]:
    """The layers' names, if they are unique, printable and not too long.

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
        # Names are printed in terminals, where control characters from a foreign file would act.
        if not 0 < len(name) <= LONGEST_TEXT or not name.isprintable():
            raise ValueError(f"layers must hold printable names of 1 to {LONGEST_TEXT} characters, got {name[:80]!a}")
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"layers must hold each name once, got {twice!a} twice")
    return names


def checked_sizes(numel: ArrayLike, layers: int) -> NDArray[np.int64]:
    """One size for each of so many layers, int64 [layers].

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
    """Optimizer steps that increase from above `last` on, int64 [rows].

    Raises:
        TypeError, ValueError: they do not, or are no integers.
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


def checked_values(name: str, value: ArrayLike, shapes: tuple[tuple[int, ...], ...]) -> NDArray[Any]:
    """The values of a column as an array of one of these shapes.

    Raises:
        TypeError, ValueError: they are of another shape or kind, or outside the column's range.
    """
    column, values = COLUMNS[name], np.asarray(value)
    if values.shape not in shapes:
        raise ValueError(f"{name} must have the shape {shapes[1]} or {shapes[2]}, got {values.shape}")
    if values.size and values.dtype.kind not in ("iu" if column.dtype.kind == "i" else "iuf"):
        kind = "integers" if column.dtype.kind == "i" else "real numbers"
        raise TypeError(f"{name} must hold {kind}, got the type {values.dtype}")
    inside = (values >= column.low) & (values <= column.high)
    if column.missing:
        inside |= values != values
    # Counting takes a tenth of the time of .all(), and this runs at every optimizer step.
    if np.count_nonzero(inside) != values.size:
        raise ValueError(f"{name} must lie between {column.low:g} and {column.high:g}, got {values[~inside].flat[0]}")
    return values
