"""The arguments that the equations share, as checked float64 arrays."""

from collections.abc import Mapping

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
    lengths = bounded("word_length", word_length, 0.0, FLOAT32_BITS)
    shares = bounded("nonzero", nonzero, 0.0, 1.0)
    try:
        shape = np.broadcast_shapes((1, layers or 1), lengths.shape, shares.shape)
    except ValueError:
        shape = ()
    if len(shape) != 2 or 0 in shape or (layers is not None and shape[1] != layers):
        expected = "[rows, layers]" if layers is None else f"[rows, {layers}] like operations"
        raise ValueError(
            f"word_length and nonzero must be {expected}, got the shapes {list(lengths.shape)} and {list(shares.shape)}"
        )
    return np.broadcast_to(lengths, shape), np.broadcast_to(shares, shape)


def as_weights(numel: ArrayLike | None, layers: int) -> Array:
    """Each layer's share of the model [layers]: by its elements, or all alike where `numel` is None.

    Raises:
        ValueError: not one non-negative number per layer, or none above zero.
    """
    if numel is None:
        return np.full(layers, 1.0 / layers)
    sizes = bounded("numel", numel, 0.0, np.inf)
    if sizes.shape != (layers,) or not sizes.any():
        raise ValueError(f"numel must hold the sizes of {layers} layers, not all zero, got {numel!r}")
    return np.asarray(sizes / sizes.sum())


def bounded(name: str, value: ArrayLike, low: float, high: float) -> Array:
    """Finite numbers from low to high, both included.

    Raises:
        TypeError: what is no number, or rows of different length.
        ValueError: a number outside, or not finite.
    """
    try:
        result = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or a regular array of numbers, got {value!r:.80}") from None
    wrong = ~(np.isfinite(result) & (result >= low) & (result <= high))
    if wrong.any():
        expected = f"between {low:g} and {high:g}" if np.isfinite(high) else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {expected}, got {result[wrong].flat[0]}")
    return result


def check_count(name: str, value: float) -> None:
    """Refuse what cannot count steps, samples or micro-batches.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 1 or not finite.
    """
    if not arguments.number(name, value) >= 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    bounded(name, value, 1.0, np.inf)
