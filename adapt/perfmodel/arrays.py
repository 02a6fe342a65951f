"""The arguments that the equations share, as checked float64 arrays."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapt import arguments

Array = NDArray[np.float64]
Operations = Mapping[str, int] | ArrayLike
"""Multiply-adds per sample [layers]: in the order of the columns, a dictionary in its own order."""

FLOAT32_BITS = 32


def as_operations(operations: Operations) -> Array:
    """[layers].

    Raises:
        ValueError: a negative count, none above zero, or more than one dimension.
    """
    counts = tuple(operations.values()) if isinstance(operations, Mapping) else operations
    result = bounded("operations", counts, 0.0, np.inf)
    if result.ndim > 1:
        raise ValueError(f"operations must have one number per layer, got the shape {result.shape}")
    if not result.any():
        raise ValueError("operations are zero in every layer: there is no work whose cost could be compared")
    return np.atleast_1d(result)


def as_rows(word_length: ArrayLike, nonzero: ArrayLike, layers: int | None = None) -> tuple[Array, Array]:
    """Both as [rows, layers]. One number stands for every layer; one dimension is one row.

    Raises:
        ValueError: word lengths outside 0…32, shares outside 0…1, shapes that do not fit.
    """
    lengths, shares = as_tables(
        "operations",
        layers,
        word_length=bounded("word_length", word_length, 0.0, FLOAT32_BITS),
        nonzero=bounded("nonzero", nonzero, 0.0, 1.0),
    )
    return lengths, shares


def as_tables(like: str, layers: int | None, **tables: Array) -> list[Array]:
    """Arrays, by their arguments' names, all as [rows, layers]: with as many layers as the argument `like` has.

    Raises:
        ValueError: shapes that do not fit, no rows or no layers.
    """
    shape = _common_shape((1, layers or 1), *(table.shape for table in tables.values()))
    if shape is None or len(shape) != 2 or 0 in shape or (layers is not None and shape[1] != layers):
        raise _misfit("be [rows, layers]" if layers is None else f"be [rows, {layers}] like {like}", tables)
    return [np.broadcast_to(table, shape) for table in tables.values()]


def fitting(**values: ArrayLike) -> list[Array]:
    """Arguments, by their names, as finite numbers of 0 or more, of shapes that broadcast.

    Raises:
        TypeError: what is no number, or rows of different length.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    arrays = {name: bounded(name, value, 0.0, np.inf) for name, value in values.items()}
    if _common_shape(*(array.shape for array in arrays.values())) is None:
        raise _misfit("have shapes that broadcast", arrays)
    return list(arrays.values())


def _common_shape(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def _misfit(expected: str, arrays: Mapping[str, Array]) -> ValueError:
    def listed(items: Iterable[object]) -> str:
        *first, last = map(str, items)
        return f"{', '.join(first)} and {last}"

    shapes = listed(list(array.shape) for array in arrays.values())
    return ValueError(f"{listed(arrays)} must {expected}, got the shapes {shapes}")


def as_weights(numel: ArrayLike | None, layers: int) -> Array:
    """Each layer's share of the model [layers]: by its elements, or all alike where `numel` is None.

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
    """Finite numbers from low to high, both included.

    Raises:
        TypeError: what is no number, or rows of different length.
        ValueError: a number outside, or not finite.
    """
    try:
        result = np.asarray(value, dtype=np.float64)
        # NumPy would read numbers out of text, and drop the imaginary part of what is complex.
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
    """One finite number of 0 or more.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 0 or not finite.
    """
    return float(bounded(name, arguments.number(name, value), 0.0, np.inf))


def check_count(name: str, value: float) -> None:
    """Refuse what cannot count steps, samples or micro-batches.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 1 or not finite.
    """
    if not arguments.number(name, value) >= 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    bounded(name, value, 1.0, np.inf)
