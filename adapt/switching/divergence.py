"""The information lost by quantising a layer, in bits: the Kullback-Leibler divergence of two histograms."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.kernels.counting import count_at_most, extremes


def divergence(weights: Tensor, quantized: Tensor, resolution: int) -> float:
    """AdaPT eq. 1 and 2: KL(P_Ŵ ‖ Q_W) between quantised and master weights, in bits.

    Both distributions are histograms over r equal bins of [min W, max W]; quantised values outside that range count
    in the end bins. Bin i is [e_i, e_(i+1)), the last one closed, with the edges e_i = min W + i·((max W − min W)/r) in
    float64; values are compared with them exactly. Both histograms get one pseudo-observation, spread evenly
    over the bins, so that the divergence is finite.

    Args:
        weights: master weights W, any shape, device and floating-point type.
        quantized: Ŵ, of the same shape.
        resolution: number of bins r, at least 1.

    Returns:
        The divergence in bits, at least 0; 0 for an empty or constant W.

    Raises:
        TypeError: a tensor is not floating-point, or the resolution not an integer.
        ValueError: a tensor holds NaN or Inf, the shapes differ, or the resolution is below 1.
    """
    resolution = checked_resolution(resolution)
    weights, low, high = checked_values(weights, "weights")
    quantized, _, _ = checked_values(quantized, "quantized")
    if weights.shape != quantized.shape:
        raise ValueError(
            f"quantized must have the shape of weights, {tuple(weights.shape)}, got {tuple(quantized.shape)}"
        )
    if low == high:
        return 0.0
    thresholds = below(bin_edges(low, high, resolution))
    return float(kullback_leibler(bin_counts(quantized, thresholds), bin_counts(weights, thresholds)))


def kullback_leibler(quantized: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """AdaPT eq. 2: Σ p·log₂(p/q) in bits, p and q the bin counts [..., r] of Ŵ and [r] of W as frequencies.

    A count c of n becomes the frequency (c + 1/r)/(n + 1): one pseudo-observation spread over r bins. Both count n.
    """
    prior, total = 1 / len(weights), weights.sum() + 1
    p, q = (quantized + prior) / total, (weights + prior) / total
    divergences: NDArray[np.float64] = np.maximum((p * np.log2(p / q)).sum(axis=-1), 0)
    return divergences


def bin_edges(low: float, high: float, resolution: int) -> NDArray[np.float64]:
    """Return the edges [r − 1] between r equal bins of [low, high], in float64."""
    if math.isinf(high - low):
        # high − low overflows; halving is exact, and so is doubling the edges.
        return 2 * bin_edges(low / 2, high / 2, resolution)
    return np.arange(1, resolution, dtype=np.float64) * np.float64((high - low) / resolution) + np.float64(low)


def below(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return thresholds with which `value ≤ threshold` is the same as `value < edge`."""
    return np.nextafter(edges, -np.inf)


def bin_counts(values: Tensor, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count, exactly, the values in each of the r bins that r − 1 thresholds separate: [..., r] for [..., r − 1].

    A value on a threshold belongs to the bin before it.
    """
    ends = np.empty((*thresholds.shape[:-1], thresholds.shape[-1] + 2), np.int64)
    ends[..., 0], ends[..., 1:-1], ends[..., -1] = 0, count_at_most(values, thresholds), values.numel()
    counts: NDArray[np.int64] = ends[..., 1:] - ends[..., :-1]
    return counts


def checked_values(values: Tensor, name: str) -> tuple[Tensor, float, float]:
    """Return the values in float32 or float64 with their minimum and maximum, which are 0 for an empty tensor.

    Raises:
        TypeError: the values are not a floating-point tensor.
        ValueError: one is not finite.
    """
    values = arguments.tensor(name, values).detach()
    if values.dtype != torch.float64:
        values = values.to(torch.float32)
    if values.numel() == 0:
        return values, 0.0, 0.0
    low, high = extremes(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, but reach from {low} to {high}: NaN and Inf have no bin")
    return values, low, high


def checked_resolution(resolution: int) -> int:
    """Return the number of bins as an int.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below 1.
    """
    resolution = arguments.whole("resolution", resolution, "bins")
    if resolution < 1:
        raise ValueError(f"resolution must be at least 1 bin, got {resolution}")
    return resolution
