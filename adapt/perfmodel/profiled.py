"""Cost of a network on a machine that supports only some widths, where zeros save nothing and memory is a bound too."""

from collections.abc import Sequence

import numpy as np

from adapt.arguments import number
from adapt.perfmodel.checked_arrays import FLOAT32_BITS, Array, ArrayLike, Operations, amount, as_operations, as_rows
from adapt.perfmodel.hardware import HardwareProfile
from adapt.perfmodel.layers import Layer


def profiled_inference_speedup(
    operations: Operations,
    word_length: ArrayLike,
    profile: HardwareProfile,
    *,
    other_bits: float = FLOAT32_BITS,
    activation_bits: ArrayLike | None = None,
) -> float:
    """Return Σ ops/rate(other) / Σ ops/rate(WL) at the last row: `inference_speedup` on a real machine.

    Args:
        operations: multiply-adds per sample [layers].
        word_length: WL, bits, [rows, layers] or one row.
        profile: the machine.
        other_bits: the width of the other network: 32 for float32, 16 for bfloat16.
        activation_bits: of each layer's input, one number or [layers]; by default as wide as the weights.

    Raises:
        TypeError: an argument is not numeric, or `profile` is not a HardwareProfile.
        ValueError: a number is out of range, the machine lacks a width, or shapes do not match.
    """
    counts, lengths = _checked(operations, word_length, profile)
    other = float((counts / profile.rate(number("other_bits", other_bits))).sum())
    activations = lengths[-1] if activation_bits is None else as_rows(activation_bits, 1.0, len(counts))[0][-1]
    return other / float((counts / profile.rate(lengths[-1], activations)).sum())


def profiled_training_speedup(
    operations: Operations,
    word_length: ArrayLike,
    profile: HardwareProfile,
    *,
    other_bits: float = FLOAT32_BITS,
    backward_bits: float = FLOAT32_BITS,
    backward_factor: float = 2,
) -> float:
    """Return `training_speedup` in its physical form on a real machine, without the overhead of switching.

    Args:
        operations, word_length, profile, other_bits: as in `profiled_inference_speedup`, except that every row counts,
            `other_bits` is the width of the other run's forward pass, and activations are as wide as the weights.
        backward_bits: width of the backward pass of both runs.
        backward_factor: products in the backward pass for each one in the forward pass.

    Raises:
        TypeError, ValueError: as in `profiled_inference_speedup`.
    """
    counts, lengths = _checked(operations, word_length, profile)
    backward = amount("backward_factor", backward_factor) / profile.rate(number("backward_bits", backward_bits))
    ours = (1 / profile.rate(lengths) + backward) @ counts
    other = (1 / profile.rate(number("other_bits", other_bits)) + backward) * counts.sum()
    return float(other / ours.mean())


def layer_latency(
    layer: Layer, profile: HardwareProfile, weight_bits: float, activation_bits: float, *, batch_size: int = 1
) -> float:
    """Return the modelled seconds of one layer: its measured cost, or else the roofline.

    The roofline is max(operations/rate, bytes/bandwidth), where input, output and weights move once, at the widths of
    the machine's product. Measured costs add up: overhead + multiply-adds + elements moved.

    Args:
        layer: from `network_layers`.
        profile: the machine.
        weight_bits, activation_bits: the layer's bits; its output is as wide as its input.
        batch_size: samples at once.

    Raises:
        ValueError: the machine does not support so many bits.
    """
    weights, activations = profile.product(weight_bits, activation_bits)
    work = layer.multiply_adds * batch_size
    cost = profile.costs.get(layer.kind, {}).get(max(weights, activations))
    if cost is not None:
        return (
            cost.overhead
            + cost.multiply_add * work
            + (cost.inputs * layer.inputs + cost.outputs * layer.outputs) * batch_size
            + cost.weights * layer.weights
        )
    compute = 2e-12 * work / float(profile.rate(weight_bits, activation_bits))
    if profile.bandwidth is None:
        return compute
    # An embedding reads the rows that it returns, not the whole table.
    read = layer.outputs * batch_size if layer.kind == "lookup" else layer.weights
    bits = read * weights + (layer.inputs + layer.outputs) * batch_size * activations
    return max(compute, bits / 8 / (profile.bandwidth * 1e9))


def network_latency(
    layers: Sequence[Layer],
    profile: HardwareProfile,
    weight_bits: ArrayLike,
    activation_bits: ArrayLike,
    *,
    batch_size: int = 1,
) -> Array:
    """Return `layer_latency` of every layer, in seconds [layers]. Bits are one number or one per layer."""
    bits = np.broadcast_to(weight_bits, len(layers)), np.broadcast_to(activation_bits, len(layers))
    return np.array(
        [
            layer_latency(layer, profile, float(w), float(a), batch_size=batch_size)
            for layer, w, a in zip(layers, *bits, strict=True)
        ]
    )


def _checked(operations: Operations, word_length: ArrayLike, profile: object) -> tuple[Array, Array]:
    """Return the multiply-adds [layers] and the word lengths [rows, layers]."""
    if not isinstance(profile, HardwareProfile):
        raise TypeError(f"profile must be a HardwareProfile, such as adapt.perfmodel.A100, got {profile!r:.80}")
    counts = as_operations(operations)
    lengths, _ = as_rows(word_length, 1.0, len(counts))
    return counts, lengths
