"""Cost models of AQT (Pareto-Optimal Quantized ResNet Is Mostly 4-bit, section 4): what a multiplication costs."""

from typing import Literal

import numpy as np

from adapt.perfmodel.checked_arrays import (
    Array,
    ArrayLike,
    Operations,
    amount,
    as_operations,
    bounded,
    broadcastable,
    check_count,
)

CostModel = Literal["linear", "quadratic"]


def multiplication_cost(
    weight_bits: ArrayLike, activation_bits: ArrayLike | None = None, *, model: CostModel = "linear"
) -> Array:
    """AQT 4.1 and 4.2: M, the cost of multiplying numbers of a and b bits.

    The linear model, max(a, b), follows the processors of today; the quadratic one, a·b/16, the energy of a multiplier.
    So 16, 8 and 4 bits cost 16, 8 and 4 in the first and 16, 4 and 1 in the second.

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
        batch_size: B.
        kernel, output: height and width of the kernel and of the layer's output.
        input_channels: Cin, those that one output channel sums: channels/groups in a grouped convolution.
        output_channels: Cout.
        multiplication: M, from `multiplication_cost`.

    Raises:
        TypeError: an argument that is not a number.
        ValueError: a size below 1, M below 0, or a kernel or output without exactly two sides.
    """
    (kernel_height, kernel_width), (height, width) = _sides("kernel", kernel), _sides("output", output)
    picture = kernel_height * kernel_width * height * width
    check_count("input_channels", input_channels)
    check_count("output_channels", output_channels)
    return dense_cost(batch_size, input_channels, output_channels, multiplication) * picture


def dense_cost(batch_size: int, inputs: int, outputs: int, multiplication: float) -> float:
    """AQT 4.3, Cost_Dense: B·Cin·Cout·M, M from `multiplication_cost`.

    Raises:
        TypeError: an argument that is not a number.
        ValueError: a size below 1, or M below 0.
    """
    check_count("batch_size", batch_size)
    check_count("inputs", inputs)
    check_count("outputs", outputs)
    return float(batch_size * inputs * outputs * amount("multiplication", multiplication))


def network_cost(
    operations: Operations,
    weight_bits: ArrayLike,
    activation_bits: ArrayLike | None = None,
    *,
    batch_size: int = 1,
    model: CostModel = "linear",
) -> float:
    """AQT 4.3: B·Σ_l ops·M, the sum of `convolution_cost` and `dense_cost` over all layers.

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
        numel, weight_bits: the weights of each layer, or of each channel, and their bits. Shapes that broadcast.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    sizes, bits = broadcastable(numel=numel, weight_bits=weight_bits)
    return float((sizes * bits).sum())


def _sides(name: str, value: tuple[int, int]) -> tuple[float, float]:
    sides = bounded(name, value, 1, np.inf)
    if sides.shape != (2,):
        raise ValueError(f"{name} must be (height, width), got {value!r:.80}")
    height, width = sides.tolist()
    return height, width
