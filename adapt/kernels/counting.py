"""How many values lie at or below each of a sorted list of thresholds: exact histograms in one pass over the data."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def count_at_most(values: Tensor, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """For every threshold t, the number of values with value ≤ t, exactly.

    Args:
        values: finite floating-point numbers of any shape, type and device.
        thresholds: ascending float64 numbers [m]; ±∞ are allowed.

    Returns:
        Counts [m] on the host; the only transfer from the device.
    """
    boundaries = torch.from_numpy(thresholds if values.dtype == torch.float64 else round_down(thresholds))
    if values.dtype != torch.float64:
        values = values.to(torch.float32)
    boundaries = boundaries.to(values.device)
    slots = torch.bucketize(values.detach().reshape(-1), boundaries, out_int32=True)
    histogram = torch.bincount(slots, minlength=len(thresholds) + 1)
    counts: NDArray[np.int64] = np.cumsum(histogram.cpu().numpy())[:-1]
    return counts


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 number at or below each threshold: `value ≤ t` keeps its answer for every float32 value."""
    with np.errstate(over="ignore"):
        nearest = thresholds.astype(np.float32)
    lower = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest > thresholds, lower, nearest).astype(np.float32)
