"""The memory that a network needs to run: weights and activations together."""

from typing import Literal

from adapt.arguments import check_option
from adapt.perfmodel.checked_arrays import ArrayLike, amount, broadcastable
from adapt.perfmodel.multiplication import weight_memory

BITS_PER_KILOBYTE = 8000


def memory_footprint(parameters: int, largest_activation: int, parameter_bits: float, activation_bits: float) -> float:
    """LSQ trade-off, section 3: parameters·b_p + largest activation·b_a, in bits.

    Layers run one after another, so only the largest activation counts.

    Args:
        parameters: the number of parameters.
        parameter_bits, activation_bits: b_p and b_a.
        largest_activation: elements per sample, max(activation_sizes(model, batch).values()).

    Raises:
        TypeError: an argument that is not a number.
        ValueError: a number below 0 or not finite.
    """
    weights = amount("parameters", parameters) * amount("parameter_bits", parameter_bits)
    return weights + amount("largest_activation", largest_activation) * amount("activation_bits", activation_bits)


def network_size(
    numel: ArrayLike,
    weight_bits: ArrayLike,
    activations: ArrayLike,
    activation_bits: ArrayLike,
    *,
    activation_size: Literal["sum", "max"] = "sum",
) -> float:
    """Mixed precision (Schaefer et al.) eq. 2: Σ b_w·s_w plus the sum or the maximum of b_a·s_a, in kB of 8000 bits.

    Args:
        numel, weight_bits: s_w and b_w by layer, or by channel. Shapes that broadcast.
        activations, activation_bits: s_a, elements per sample, and b_a by tensor. Shapes that broadcast.
        activation_size: "sum" for the memory traffic, "max" for the memory that is needed at once.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number below 0 or not finite, shapes that do not broadcast, or another `activation_size`.
    """
    check_option("activation_size", activation_size, ("sum", "max"))
    sizes, bits = broadcastable(activations=activations, activation_bits=activation_bits)
    tensors = sizes * bits
    total = tensors.sum() if activation_size == "sum" else tensors.max(initial=0)
    return (weight_memory(numel, weight_bits) + float(total)) / BITS_PER_KILOBYTE
