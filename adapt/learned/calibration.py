"""Initial ranges, from the distribution of the weights and from the activations in a few batches."""

import numpy as np
import torch
from torch import Tensor

PERCENTILE = 99.99
"""Percentage of an activation's magnitudes within its initial range."""

_CANDIDATES = torch.linspace(0.3, 1.0, 29)


def gaussian_range(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return q₊ = max|μ ± 3σ| per channel: Gaussian calibration (Schaefer et al. 3)."""
    return mean.abs() + 3 * deviation


def percentile(x: Tensor) -> float:
    """Return the 99.99th percentile of |x| over the finite elements; 0 if there is none."""
    magnitudes = x.detach().abs().flatten().float().cpu().numpy()
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    if not magnitudes.size:
        return 0.0
    place = min(int(np.ceil(magnitudes.size * PERCENTILE / 100)), magnitudes.size) - 1
    return float(np.partition(magnitudes, place)[place])


def best_range(values: Tensor, maximum: Tensor, top: Tensor) -> Tensor:
    """Return the range of least squared error for each channel, [channels], among 0.3 to 1 times `maximum`.

    For one signed bit, whose values are ±q₊, it is mean|x|.

    Args:
        values: [channels, n].
        maximum: the ranges to shrink, [channels]; those beyond the largest value are first cut to it.
        top: the largest multiple of the step in each channel's word, [channels]; 0 for one signed bit.
    """
    magnitudes = values.abs()
    # For a channel without non-zero values, any positive range will do.
    maximum = torch.minimum(maximum, magnitudes.amax(1)).clamp(min=torch.finfo(torch.float32).tiny)
    ends = top.clamp(min=1)[:, None]
    best = torch.full_like(maximum, torch.inf)
    chosen = maximum
    for share in _CANDIDATES.tolist():
        step = share * maximum[:, None] / ends
        rounded = torch.round(values / step).clamp(-ends, ends) * step
        error = (rounded - values).square().sum(1)
        # Among equals the last one, which is the largest, wins.
        better = error <= best
        best, chosen = torch.where(better, error, best), torch.where(better, share * maximum, chosen)
    return torch.where(top > 0, chosen, magnitudes.mean(1))
