"""The cost of multiplications: models from AQT (Pareto-Optimal Quantized ResNet Is Mostly 4-bit, 4), and energy."""

from typing import Literal

import numpy as np

from adapt.arguments import check_option
from adapt.perfmodel.checked_arrays import (
    FLOAT32_BITS,
    Array,
    ArrayLike,
    Operations,
    as_operations,
    broadcastable,
    check_count,
)

CostModel = Literal["linear", "quadratic"]


def multiplication_cost(
    weight_bits: ArrayLike, activation_bits: ArrayLike | None = None, *, model: CostModel = "linear"
) -> Array:
    """AQT 4.1 and 4.2: M, the cost of multiplying numbers of a and b bits.

    The linear model, max(a, b), follows present processors; the quadratic one, a·b/16, the energy of a multiplier. So
    16, 8 and 4 bits cost 16, 8 and 4 in the first and 16, 4 and 1 in the second.

    Args:
        weight_bits: a, above 0, of any shape.
        activation_bits: b, above 0, of a shape that broadcasts with a's; by default a.
        model: "linear" or "quadratic".

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: bits that are not above 0, shapes that do not broadcast, or another model.
    """
    bits = {"weight_bits": weight_bits, "activation_bits": weight_bits if activation_bits is None else activation_bits}
    first, second = broadcastable(**bits)
    for name, values in zip(bits, (first, second), strict=True):
        if not values.all():
            raise ValueError(f"{name} must be above 0, got 0: a number of 0 bits cannot be multiplied")
    check_option("model", model, ("linear", "quadratic"))
    return np.asarray(np.maximum(first, second) if model == "linear" else first * second / 16)


def network_cost(
    operations: Operations,
    weight_bits: ArrayLike,
    activation_bits: ArrayLike | None = None,
    *,
    batch_size: int = 1,
    model: CostModel = "linear",
) -> float:
    """AQT 4.3: Cost = B·Σ_l ops·M, ops = Kh·Kw·Aw·Ah·Cin·Cout of a convolution (the paper prints Cin twice).

    A dense layer is a 1×1 convolution of one pixel, B·Cin·Cout·M.

    Args:
        operations: multiply-adds per sample [layers].
        weight_bits, activation_bits: one number or one per layer.
        batch_size: B.
        model: as in `multiplication_cost`.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    check_count("batch_size", batch_size)
    counts = as_operations(operations)
    costs = multiplication_cost(weight_bits, activation_bits, model=model)
    if costs.shape not in ((), counts.shape):
        raise ValueError(
            f"weight_bits and activation_bits must be one number or {len(counts)}, one per layer, got the shape "
            f"{list(costs.shape)}"
        )
    return batch_size * float((counts * costs).sum())


def weight_memory(numel: ArrayLike, weight_bits: ArrayLike) -> float:
    """AQT 4.3, Mem: Σ_l Kh·Kw·Cin·Cout·bits, in bits.

    Args:
        numel, weight_bits: the number of weights of each layer, or of each channel, and their bits. Shapes that
            broadcast.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    sizes, bits = broadcastable(numel=numel, weight_bits=weight_bits)
    return float((sizes * bits).sum())


_FLOAT32 = 3.7 + 0.9
"""Picojoules of one multiplication and one addition in float32."""
_INT8_MULTIPLICATION, _INT32_ADDITION = 0.2, 0.1


def multiply_add_energy(weight_bits: ArrayLike, activation_bits: ArrayLike | None = None) -> Array:
    """Return the picojoules of one multiply-add of integers of a and b bits at 45 nm: 0.2·a·b/64 + 0.1.

    The table of Horowitz (ISSCC 2014) lists multipliers of 8 and 32 bits, 0.2 and 3.1 pJ, whose energy grows with the
    product of the widths; the sum is kept in 32 bits, 0.1 pJ. If either number has 32 bits or more, which stands for
    float32, both are floating point, 3.7 + 0.9 pJ. Memory accesses are not counted: they depend on where the numbers
    are stored.

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
