"""PushDown: the smallest precision whose histogram loses no information."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.numerics import HIGHEST_FRACTION, LONGEST_WORD, LOWEST_FRACTION, SHORTEST_WORD, Precision
from adapt.rounding import grid
from adapt.switching.divergence import (
    below,
    bin_counts,
    bin_edges,
    checked_resolution,
    checked_values,
    kullback_leibler,
)


def push_down(weights: Tensor, *, resolution: int, tolerance: float) -> Precision:
    """AdaPT alg. 3: the smallest format ⟨WL_min, FL_min⟩ whose divergence from the weights is within the tolerance.

    FL_min is found by bisection over the formats of `candidates`, each tried with nearest rounding. The divergence is
    not strictly monotone in FL; the result itself passes, and the next coarser candidate, if any, fails. If bisection
    finds none that passes (values close to a bin edge at tolerance 0), the result is the finest one: 32 bits, or fewer
    if FL reaches 126 first.

    Args:
        weights: master weights of one layer, any shape, device and floating-point type.
        resolution: number of bins r, at least 1.
        tolerance: largest divergence in bits, at least 0; 0 requires equal histograms.

    Returns:
        ⟨WL_min, FL_min⟩: ⟨2, 0⟩ for an empty or all-zero tensor, the coarsest candidate for another constant one.

    Raises:
        TypeError: weights is not a floating-point tensor, the resolution not an integer, or the tolerance not a number.
        ValueError: the weights hold NaN, Inf or values that no format reaches, the resolution is below 1, or the
            tolerance is negative or not finite.
    """
    return lowest_precision(weights, resolution=resolution, tolerance=tolerance)[0]


def lowest_precision(weights: Tensor, *, resolution: int, tolerance: float) -> tuple[Precision, float]:
    """Return the result of `push_down` and its divergence in bits; arguments and errors are the same.

    One pass over the weights serves many candidates: their histograms follow from the number of weights below each bin
    edge, moved to the boundary of a rounding cell (`rounded_below`), so no tensor is quantised. The coarser half of the
    candidates nearly always contains the result; if not, a second pass serves the finer half.
    """
    resolution = checked_resolution(resolution)
    tolerance = arguments.number("tolerance", tolerance)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a finite number of bits, at least 0, got {tolerance}")
    values, low, high = checked_values(weights, "weights")
    if low == high == 0:
        return Precision(SHORTEST_WORD, 0), 0.0
    grids = candidates(max(-low, high), weights.dtype)
    if low == high:
        return grids.formats[0], 0.0

    edges = bin_edges(low, high, resolution)
    failing, passing = -1, len(grids.formats) - 1
    middle = max((failing + passing) // 2, 0)
    lost = _divergences(values, edges, grids.part(0, middle + 1))
    if lost[-1] > tolerance:
        lost = np.concatenate([lost, _divergences(values, edges, grids.part(middle + 1, passing + 1))])
    while passing - failing > 1:
        middle = (failing + passing) // 2
        if lost[middle] <= tolerance:
            passing = middle
        else:
            failing = middle
    return grids.formats[passing], float(lost[passing])


def _divergences(values: Tensor, edges: NDArray[np.float64], grids: "Candidates") -> NDArray[np.float64]:
    """Return the divergence in bits from rounding to each grid, [formats]."""
    counts = bin_counts(values, np.concatenate([below(edges)[None], rounded_below(edges, grids)]))
    return kullback_leibler(counts[1:], counts[0])


class Candidates(NamedTuple):
    """Formats, and as columns [formats, 1] the step and the ends of the range, in steps, that `quantize` uses."""

    formats: tuple[Precision, ...]
    steps: NDArray[np.float64]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]

    @classmethod
    def of(cls, formats: Iterable[Precision], dtype: torch.dtype) -> "Candidates":
        """Return the grids to which `quantize` rounds tensors of `dtype`."""
        formats = tuple(formats)
        rows = np.array([grid(precision, dtype) for precision in formats], np.float64).reshape(-1, 4)
        return cls(formats, rows[:, 1:2], rows[:, 2:3], rows[:, 3:4])

    def part(self, first: int, end: int) -> "Candidates":
        """Return the formats `first` … `end` − 1."""
        chosen = slice(first, end)
        return Candidates(self.formats[chosen], self.steps[chosen], self.lowest[chosen], self.highest[chosen])


def candidates(largest: float, dtype: torch.dtype) -> Candidates:
    """Return the formats worth trying for weights up to ±`largest` > 0, from the coarsest to the finest.

    Each fraction length FL comes with the fewest integer bits that hold `largest`, saturating by at most half a step:
    largest ≤ 2^(IL − 1) − 2^−FL/2. The coarsest FL is the first at which `largest` does not round to 0, so 2 bits are
    needed; the finest is the last that fits 32 bits. Both stay within −126 to 126.

    Raises:
        ValueError: no format reaches `largest`.
    """
    mantissa, exponent = math.frexp(largest)
    _, gap = math.frexp(1 - mantissa)
    grids = _candidates(exponent, gap, dtype)
    if not grids.formats:
        raise ValueError(f"weights reach {largest}, beyond what a fixed-point format of {LONGEST_WORD} bits can hold")
    return grids


@lru_cache(maxsize=1024)
def _candidates(exponent: int, gap: int, dtype: torch.dtype) -> Candidates:
    """Return `candidates` for largest = (1 − d)·2^exponent with 2^(gap − 1) ≤ d < 2^gap.

    In steps of 2^−FL it is (1 − d)·2^n with n = exponent + FL. If d ≥ 2^−(n + 1), which is n ≥ −gap, this is at most
    2^n − ½, for which n + 1 bits are enough; otherwise n + 2 bits are needed.
    """
    formats = []
    for fraction_length in range(LOWEST_FRACTION, HIGHEST_FRACTION + 1):
        n = exponent + fraction_length
        word_length = n + 1 if n >= -gap else n + 2
        if SHORTEST_WORD <= word_length <= LONGEST_WORD:
            formats.append(Precision(word_length, fraction_length))
    if not formats and exponent < 0:
        formats = [Precision(SHORTEST_WORD, HIGHEST_FRACTION)]
    return Candidates.of(formats, dtype)


def rounded_below(edges: NDArray[np.float64], grids: Candidates) -> NDArray[np.float64]:
    """Return thresholds t with `Q(w) < edge` exactly where `w ≤ t`, for nearest rounding: [formats, edges].

    Q(w) = k·step lies below the edge if k ≤ K, the last whole number of steps below it. Rounding gives k ≤ K up to the
    cell boundary K + ½, which itself rounds down only if K is even; saturation moves no k past the ends of the range.
    All of this is exact in float64.
    """
    last = np.ceil(edges / grids.steps) - 1
    thresholds = last + 0.5
    up = np.rint(thresholds) != last
    thresholds *= grids.steps
    # The next smaller number, five times faster than nextafter. Bits count away from 0, which is never a boundary.
    bits = thresholds.view(np.int64)
    bits -= (bits >> 63 | 1) * up
    thresholds[last < grids.lowest] = -np.inf
    thresholds[last >= grids.highest] = np.inf
    return thresholds
