"""Exact counts of the values at or below thresholds, and the smallest and largest value: for histograms."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels import name_for
from adapt.kernels.stream import is_dense


def count_at_most(values: Tensor, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of values ≤ t for every threshold t, compared exactly.

    The Numba back end counts in one pass. The others sort the values on their device and transfer all counts back at
    once.

    Args:
        values: float32 or float64 without NaN, of any shape, strides and device.
        thresholds: float64 numbers of any shape, in any order; ±∞ are allowed.

    Returns:
        Counts in the shape of `thresholds`.
    """
    if values.device.type == "cpu":
        # The order of the values does not matter; memory order avoids a copy.
        numbers = values.numpy().ravel(order="K")
        if _is_numba(values):
            from adapt.kernels.numba_.counting import count

            return count(numbers, thresholds)
        # NumPy sorts thirty times as fast as torch on the CPU.
        values = torch.from_numpy(np.sort(numbers))
    else:
        values = torch.sort(values.reshape(-1)).values
    boundaries = torch.from_numpy(thresholds if values.dtype == torch.float64 else round_down(thresholds))
    counts: NDArray[np.int64] = torch.searchsorted(values, boundaries.to(values.device), right=True).cpu().numpy()
    return counts


def extremes(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value, in one transfer from the device; one of them is NaN if a value is.

    Args:
        values: float32 or float64, at least one, of any shape, strides and device.
    """
    if _is_numba(values) and values.dtype == torch.float32 and is_dense(values):
        from adapt.kernels.numba_ import counting as counting_numba

        return counting_numba.extremes(values.data_ptr(), values.numel())  # type: ignore[no-any-return]
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return low, high


def _is_numba(values: Tensor) -> bool:
    return name_for(values.device) == "numba"


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 number at or below each threshold; for float32 values, `value ≤ t` does not change."""
    with np.errstate(over="ignore"):
        nearest = thresholds.astype(np.float32)
        return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)
