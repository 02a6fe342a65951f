"""Cost models of AQT (Pareto-Optimal Quantized ResNet Is Mostly 4-bit, section 4): what a multiplication costs."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from adapt.perfmodel.arrays import Array, Operations, amount, as_operations, bounded, check_count, fitting

CostModel = Literal["linear", "quadratic"]


def multiplication_cost(
    weight_bits: ArrayLike, activation_bits: ArrayLike | None = None, *, model: CostModel = "linear"
) -> Array:
    """AQT 4.1 and 4.2: M, the cost of multiplying numbers of a and b bits.

    Linear, as on processors that exist: max(a, b). Quadratic, as the energy of a multiplier: a·b/16. So 16, 8 and 4
    bits cost 16, 8 and 4 or 16, 4 and 1.

    Args:
        weight_bits: a, above 0, of any shape.
        activation_bits: b, likewise, of a shape that broadcasts; by default as many as the weights have.
        model: "linear" or "quadratic".

    Raises:
        TypeError: an argument that holds no numbers.
        ValueError: bits that are not above 0, shapes that do not broadcast, or another model.
    """
    bits = {"weight_bits": weight_bits, "activation_bits": weight_bits if activation_bits is None else activation_bits}
    first, second = fitting(**bits)
    for name, values in zip(bits, (first, second), strict=True):
        if not values.all():
            raise ValueError(f"{name} must be above 0, got 0: a number without bits cannot be multiplied")
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

    Raises:
        TypeError: an argument that is no number.
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
        TypeError: an argument that is no number.
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
        raise ValueError(
            f"weight_bits and activation_bits must be one number or {len(counts)}, one per layer, got the shape "
            f"{list(costs.shape)}"
        )
    return batch_size * float((counts * costs).sum())


def weight_memory(numel: ArrayLike, weight_bits: ArrayLike) -> float:
    """AQT 4.3, Mem: Σ_l Kh·Kw·Cin·Cout·bits, in bits.

    Args:
        numel: weights of each layer, or of each channel; weight_bits: their bits. Shapes that broadcast.

    Raises:
        TypeError: an argument that holds no numbers.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    sizes, bits = fitting(numel=numel, weight_bits=weight_bits)
    return float((sizes * bits).sum())


def _sides(name: str, value: tuple[int, int]) -> tuple[float, float]:
    sides = bounded(name, value, 1, np.inf)
    if sides.shape != (2,):
        raise ValueError(f"{name} must be (height, width), got {value!r:.80}")
    height, width = sides.tolist()
    return height, width
