"""Types of the arguments that the equations share, and functions that check them and return float64 arrays."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing
from numpy.typing import NDArray
from typing_extensions import TypeAliasType

from adapt import arguments

# Type aliases of this kind keep their names in help(), which would otherwise print 250 characters per argument.
ArrayLike = TypeAliasType("ArrayLike", numpy.typing.ArrayLike)
"""Numbers of any shape: a Python or NumPy number, a nested sequence, or an array."""
Array = TypeAliasType("Array", NDArray[np.float64])
"""A float64 NumPy array."""
Operations = TypeAliasType("Operations", Mapping[str, int] | numpy.typing.ArrayLike)
"""Multiply-adds per sample [layers], in the order of the trace's columns, or a mapping in that order."""

FLOAT32_BITS = 32


def as_operations(operations: Operations) -> Array:
    """Return the counts, [layers].

    Raises:
        ValueError: a negative count, none above zero, or more than one dimension.
    """
    counts = tuple(operations.values()) if isinstance(operations, Mapping) else operations
    result = bounded("operations", counts, 0.0, np.inf)
    if result.ndim > 1:
        raise ValueError(f"operations must have one number per layer, got the shape {result.shape}")
    if not result.any():
        raise ValueError("operations are zero in every layer: there is no work to compare")
    return np.atleast_1d(result)


def as_rows(word_length: ArrayLike, nonzero: ArrayLike, layers: int | None = None) -> tuple[Array, Array]:
    """Return both as [rows, layers]. One number stands for every layer; one dimension is one row.

    Raises:
        ValueError: word lengths outside 0…32, shares outside 0…1, or shapes that do not match.
    """
    lengths, shares = as_tables(
        "operations",
        layers,
        word_length=bounded("word_length", word_length, 0.0, FLOAT32_BITS),
        nonzero=bounded("nonzero", nonzero, 0.0, 1.0),
    )
    return lengths, shares


def as_tables(like: str, layers: int | None, **tables: Array) -> list[Array]:
    """Broadcast arrays, given by argument name, to [rows, layers].

    Args:
        like: the argument that has `layers` layers, for the message.
        layers: how many there must be, or None.

    Raises:
        ValueError: shapes that do not match, no rows or no layers.
    """
    shape = _common_shape((1, layers or 1), *(table.shape for table in tables.values()))
    if shape is None or len(shape) != 2 or 0 in shape or (layers is not None and shape[1] != layers):
        raise _shape_error("be [rows, layers]" if layers is None else f"be [rows, {layers}] like {like}", tables)
    return [np.broadcast_to(table, shape) for table in tables.values()]


def broadcastable(**values: ArrayLike) -> list[Array]:
    """Return arguments, given by name, as arrays of finite numbers of 0 or more whose shapes broadcast.

    Raises:
        TypeError: an argument that is not numeric, or has rows of different length.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    arrays = {name: bounded(name, value, 0.0, np.inf) for name, value in values.items()}
    if _common_shape(*(array.shape for array in arrays.values())) is None:
        raise _shape_error("have shapes that broadcast", arrays)
    return list(arrays.values())


def _common_shape(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def _shape_error(expected: str, arrays: Mapping[str, Array]) -> ValueError:
    def listed(items: Iterable[object]) -> str:
        *first, last = map(str, items)
        return f"{', '.join(first)} and {last}"

    shapes = listed(list(array.shape) for array in arrays.values())
    return ValueError(f"{listed(arrays)} must {expected}, got the shapes {shapes}")


def as_weights(numel: ArrayLike | None, layers: int) -> Array:
    """Return each layer's share of the model [layers]: in proportion to its elements, or equal where `numel` is None.

    Raises:
        ValueError: not one non-negative number per layer, or none above zero.
    """
    if numel is None:
        return np.full(layers, 1.0 / layers)
    sizes = bounded("numel", numel, 0.0, np.inf)
    if sizes.shape != (layers,) or not sizes.any():
        raise ValueError(f"numel must hold the sizes of {layers} layers, not all zero, got {numel!r:.80}")
    return np.asarray(sizes / sizes.sum())


def bounded(name: str, value: ArrayLike, low: float, high: float) -> Array:
    """Return finite numbers from low to high, both included.

    Raises:
        TypeError: the value is not numeric, or has rows of different length.
        ValueError: a number outside, or not finite.
    """
    try:
        result = np.asarray(value, dtype=np.float64)
        # NumPy would parse text as numbers, and drop the imaginary parts of complex numbers.
        numeric = np.asarray(value).dtype.kind in "biufO"
    except (TypeError, ValueError, RuntimeError):
        numeric = False
    if not numeric:
        raise TypeError(f"{name} must be a number or a regular array of numbers, got {value!r:.80}")
    wrong = ~(np.isfinite(result) & (result >= low) & (result <= high))
    if wrong.any():
        expected = f"between {low:g} and {high:g}" if np.isfinite(high) else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {expected}, got {result[wrong].flat[0]}")
    return result


def amount(name: str, value: float) -> float:
    """Return one finite number of 0 or more.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is below 0 or not finite.
    """
    return float(bounded(name, arguments.number(name, value), 0.0, np.inf))


def check_count(name: str, value: float) -> None:
    """Check that a number can count steps, samples or micro-batches.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is below 1 or not finite.
    """
    if not arguments.number(name, value) >= 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    bounded(name, value, 1.0, np.inf)
