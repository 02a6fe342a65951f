"""The energy of arithmetic in a 45 nm process, from the table of Horowitz (ISSCC 2014)."""

import numpy as np

from adapt.perfmodel.checked_arrays import FLOAT32_BITS, Array, ArrayLike, broadcastable

_FLOAT32 = 3.7 + 0.9
"""Picojoules of one multiplication and one addition in float32."""
_INT8_MULTIPLICATION, _INT32_ADDITION = 0.2, 0.1


def multiply_add_energy(weight_bits: ArrayLike, activation_bits: ArrayLike | None = None) -> Array:
    """Return the picojoules of one multiply-add of integers of a and b bits: 0.2·a·b/64 + 0.1.

    The table lists multipliers of 8 and 32 bits, 0.2 and 3.1 pJ, whose energy grows with the product of the widths; the
    sum is kept in 32 bits, 0.1 pJ. If either number has 32 bits or more, which stands for float32, both are floating
    point, 3.7 + 0.9 pJ. Memory accesses are not counted: they depend on where the numbers are stored.

    Args:
        weight_bits, activation_bits: a and b, of shapes that broadcast; by default b = a.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: bits below 0 or not finite, or shapes that do not broadcast.
    """
    activations = weight_bits if activation_bits is None else activation_bits
    first, second = broadcastable(weight_bits=weight_bits, activation_bits=activations)
    integers = _INT8_MULTIPLICATION * first * second / 64 + _INT32_ADDITION
    return np.where(np.maximum(first, second) >= FLOAT32_BITS, _FLOAT32, integers)
