"""Cost models of AQT (Pareto-Optimal Quantized ResNet Is Mostly 4-bit, section 4): what a multiplication costs."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from adapt.perfmodel.arrays import Array, Operations, as_operations, bounded, check_count

CostModel = Literal["linear", "quadratic"]


def multiplication_cost(
    weight_bits: ArrayLike, activation_bits: ArrayLike | None = None, *, model: CostModel = "linear"
) -> Array:
    """AQT 4.1 and 4.2: M, the cost of multiplying numbers of a and b bits.

    Linear, as on processors that exist: max(a, b). Quadratic, as the energy of a multiplier: a·b/16. So 16, 8 and 4
    bits cost 16, 8 and 4 or 16, 4 and 1.

    Args:
        weight_bits: a, above 0, of any shape.
        activation_bits: b, likewise; by default as many as the weights have.
        model: "linear" or "quadratic".

    Raises:
        ValueError: bits that are not above 0, or another model.
    """
    first = _bits("weight_bits", weight_bits)
    second = first if activation_bits is None else _bits("activation_bits", activation_bits)
    if model == "linear":
        return np.maximum(first, second)
    if model == "quadratic":
        return np.asarray(first * second / 16)
    raise ValueError(f"model must be 'linear' or 'quadratic', got {model!r}")


def convolution_cost(
    batch_size: int,
    kernel: tuple[int, int],
    output: tuple[int, int],
    input_channels: int,
    output_channels: int,
    multiplication: float,
) -> float:
    """AQT 4.3, Cost_Conv2D: B·Kh·Kw·Aw·Ah·Cin·Cout·M (the paper prints Cin twice).

    Args:
        kernel, output: height and width of the kernel and of the layer's output picture.
        input_channels: those that one output channel sums, so channels/groups in a grouped convolution.
        multiplication: M, from `multiplication_cost`.
    """
    return (
        batch_size * kernel[0] * kernel[1] * output[0] * output[1] * input_channels * output_channels * multiplication
    )


def dense_cost(batch_size: int, inputs: int, outputs: int, multiplication: float) -> float:
    """AQT 4.3, Cost_Dense: B·Cin·Cout·M, M from `multiplication_cost`."""
    return batch_size * inputs * outputs * multiplication


def network_cost(
    operations: Operations,
    weight_bits: ArrayLike,
    activation_bits: ArrayLike | None = None,
    *,
    batch_size: int = 1,
    model: CostModel = "linear",
) -> float:
    """AQT 4.3: B·Σ_l ops·M, the layers' costs summed; ops is what `convolution_cost` and `dense_cost` spell out.

    Args:
        operations: multiply-adds per sample [layers].
        weight_bits, activation_bits: one number or one per layer.

    Raises:
        ValueError: a number out of its range, or shapes that do not fit.
    """
    check_count("batch_size", batch_size)
    counts = as_operations(operations)
    costs = multiplication_cost(weight_bits, activation_bits, model=model)
    if costs.shape not in ((), counts.shape):
        raise ValueError(f"weight_bits and activation_bits must be one number or {len(counts)}, one per layer")
    return batch_size * float((counts * costs).sum())


def weight_memory(numel: ArrayLike, weight_bits: ArrayLike) -> float:
    """AQT 4.3, Mem: Σ_l Kh·Kw·Cin·Cout·bits, in bits.

    Args:
        numel: weights of each layer, or of each channel; weight_bits: their bits. Shapes that broadcast.
    """
    return float((bounded("numel", numel, 0, np.inf) * bounded("weight_bits", weight_bits, 0, np.inf)).sum())


def _bits(name: str, value: ArrayLike) -> Array:
    result = bounded(name, value, 0, np.inf)
    if not result.all():
        raise ValueError(f"{name} must be above 0, got 0: a number without bits cannot be multiplied")
    return result
