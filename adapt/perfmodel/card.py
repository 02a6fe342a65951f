"""A model card: the cost of every layer of a network at its precision, and the speedup of the whole on a machine."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.perfmodel.checked_arrays import FLOAT32_BITS, ArrayLike, as_rows
from adapt.perfmodel.footprint import memory_footprint, network_size
from adapt.perfmodel.hardware import HardwareProfile
from adapt.perfmodel.layers import Layer
from adapt.perfmodel.multiplication import CostModel, multiply_add_energy, network_cost
from adapt.perfmodel.profiled import network_latency, profiled_inference_speedup
from adapt.perfmodel.ratios import inference_speedup, size_ratio

_MODELS: tuple[CostModel, ...] = ("linear", "quadratic")


def model_card(
    layers: Sequence[Layer],
    profile: HardwareProfile,
    weight_bits: ArrayLike,
    activation_bits: ArrayLike | None = None,
    *,
    nonzero: ArrayLike = 1.0,
    batch_size: int = 1,
    other_parameters: int = 0,
) -> dict[str, Any]:
    """Return the modelled figures of a network, for each layer and in total, as plain numbers and strings.

    All speedups compare with the same network at `baseline_bits`: float32, or the machine's widest words if it has no
    float32. The idealised speedup assumes that work is proportional to bits and zeros cost nothing
    (`inference_speedup`). In the profiled one, each layer runs at the next widths that the machine supports. In the
    bounded one, a layer also takes at least the time to move its data or, if the machine was measured, the measured
    time of such a layer.

    Args:
        layers: from `network_layers`.
        profile: the machine.
        weight_bits: bits of each layer's weights, one number or [layers].
        activation_bits: bits of each layer's input, one number or [layers]; by default as wide as the weights.
        nonzero: share of each layer's weights that are not zero, one number or [layers].
        batch_size: samples at once.
        other_parameters: number of biases and other parameters that stay in float32.

    Raises:
        TypeError: an argument is not numeric.
        ValueError: a number is out of range, shapes do not match, the machine lacks a width, or the network has no
            multiply-adds.
    """
    counts, sizes = ([getattr(layer, name) for layer in layers] for name in ("multiply_adds", "weights"))
    flows = [layer.inputs + layer.outputs for layer in layers]
    largest = max((layer.outputs for layer in layers), default=0)
    (lengths,), (shares,) = as_rows(weight_bits, nonzero, len(layers))
    (widths,), _ = as_rows(lengths if activation_bits is None else activation_bits, 1.0, len(layers))
    before = profile.float_bits
    ours = network_latency(layers, profile, lengths, widths, batch_size=batch_size)
    other = network_latency(layers, profile, before, before, batch_size=batch_size)
    ideal = np.multiply(counts, lengths) * shares
    energy = multiply_add_energy(lengths, widths) * counts * 1e-6
    parameters = sum(sizes) + other_parameters
    mean_bits = (np.dot(sizes, lengths) + FLOAT32_BITS * other_parameters) / parameters
    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "multiply_adds": layer.multiply_adds,
            "weights": layer.weights,
            "inputs": layer.inputs,
            "outputs": layer.outputs,
            "weight_bits": float(lengths[i]),
            "activation_bits": float(widths[i]),
            "nonzero": float(shares[i]),
            "runs_at": list(profile.product(float(lengths[i]), float(widths[i]))),
            "cost_share": float(ideal[i] / ideal.sum()) if ideal.any() else None,
            "energy_microjoules": float(energy[i]),
            "microseconds": float(ours[i] * 1e6),
            "baseline_microseconds": float(other[i] * 1e6),
        }
        for i, layer in enumerate(layers)
    ]
    scale, speedup = before / FLOAT32_BITS, inference_speedup(counts, lengths, shares)
    totals = {
        "parameters": parameters,
        "weights": sum(sizes),
        "multiply_adds": sum(counts),
        "mean_weight_bits": float(np.average(lengths, weights=sizes)),
        "size_ratio": size_ratio(lengths, 1.0, sizes),
        "kilobytes_moved": network_size(sizes, lengths, flows, widths),
        "largest_activation": largest,
        "footprint_kilobytes": memory_footprint(parameters, largest, float(mean_bits), float(widths.max())) / 8000,
        "bit_operations": float(np.dot(counts, lengths * widths)),
        "energy_microjoules": float(energy.sum()),
        "float32_energy_microjoules": float(multiply_add_energy(FLOAT32_BITS) * sum(counts) * 1e-6),
        **{
            f"{model}_cost_ratio": network_cost(counts, lengths.clip(1), widths.clip(1), model=model)
            / network_cost(counts, FLOAT32_BITS, model=model)
            for model in _MODELS
        },
        "idealised_speedup": speedup * scale if math.isfinite(speedup) else None,
        "profiled_speedup": profiled_inference_speedup(
            counts, lengths, profile, other_bits=before, activation_bits=widths
        ),
        "bounded_speedup": float(other.sum() / ours.sum()),
        "microseconds": float(ours.sum() * 1e6),
        "baseline_microseconds": float(other.sum() * 1e6),
    }
    return {
        "format": "adapt.card",
        "version": 1,
        "machine": profile.name,
        "source": profile.source,
        "bound": "measured layers" if profile.costs else "roofline" if profile.bandwidth else "none",
        "batch_size": batch_size,
        "baseline_bits": before,
        "totals": totals,
        "layers": rows,
    }
