"""PushDown: the smallest precision that loses nothing a histogram could show."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.counting import count_at_most
from adapt.precision import HIGHEST_FRACTION, LONGEST_WORD, LOWEST_FRACTION, SHORTEST_WORD, Precision
from adapt.rounding import grid
from adapt.switching.divergence import below, bin_counts, bin_edges, checked_resolution, extent, kullback_leibler


def push_down(weights: Tensor, *, resolution: int, tolerance: float) -> Precision:
    """AdaPT alg. 3: the smallest format ⟨WL_min, FL_min⟩ whose divergence from the weights is within the tolerance.

    FL_min is found by bisection over the formats of `candidates`, each tried with nearest rounding. The divergence is
    not strictly monotone in FL; the answer itself passes, and the next coarser candidate fails unless there is none.
    Where bisection meets none that passes (values close to a bin edge at tolerance 0), the answer is the finest one:
    32 bits, or fewer where FL ends at 126 first.

    Args:
        weights: master weights of one layer, any shape and floating-point type.
        resolution: number of bins r, at least 1.
        tolerance: largest divergence in bits, at least 0; 0 asks for equal histograms.

    Returns:
        ⟨WL_min, FL_min⟩. An empty or all-zero tensor answers ⟨2, 0⟩, another constant one its coarsest candidate.

    Raises:
        TypeError: weights is not a floating-point tensor, or the resolution not an integer.
        ValueError: the weights hold NaN, Inf or values that no format reaches, the resolution is below 1, or the
            tolerance is negative or not finite.
    """
    resolution = checked_resolution(resolution)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a finite number of bits, at least 0, got {tolerance}")
    low, high = extent(weights, "weights")
    if low == high == 0:
        return Precision(SHORTEST_WORD, 0)
    formats = candidates(max(-low, high))
    if low == high:
        return formats[0]

    edges = bin_edges(low, high, resolution)
    thresholds = np.stack([below(edges)] + [rounded_below(edges, precision, weights.dtype) for precision in formats])
    ascending, places = np.unique(thresholds, return_inverse=True)
    counts = count_at_most(weights, ascending)[places].reshape(thresholds.shape)
    histograms = [bin_counts(row, weights.numel()) for row in counts]

    failing, passing = -1, len(formats) - 1
    while passing - failing > 1:
        middle = (failing + passing) // 2
        if kullback_leibler(histograms[1 + middle], histograms[0]) <= tolerance:
            passing = middle
        else:
            failing = middle
    return formats[passing]


def candidates(largest: float) -> list[Precision]:
    """The formats worth trying for weights up to ±`largest` > 0, from the coarsest to the finest.

    A fraction length FL comes with the fewest integer bits that hold `largest`, saturating by at most half a step:
    largest ≤ 2^(IL − 1) − 2^−FL/2. The coarsest FL is the first at which `largest` does not round to 0, so that 2 bits
    are needed; the finest is the last that fits 32 bits. Both stay within −126 to 126.
    """
    mantissa, exponent = math.frexp(largest)
    coarsest = 1 - exponent if mantissa == 0.5 else -exponent
    coarsest = min(max(coarsest, LOWEST_FRACTION), HIGHEST_FRACTION)
    formats = []
    for fraction_length in range(coarsest, HIGHEST_FRACTION + 1):
        word_length = max(_word_length(math.ldexp(largest, fraction_length)), SHORTEST_WORD)
        if word_length > LONGEST_WORD:
            break
        formats.append(Precision(word_length, fraction_length))
    if not formats:
        raise ValueError(f"weights reach {largest}, beyond what a fixed-point format of {LONGEST_WORD} bits can hold")
    return formats


def _word_length(steps: float) -> int:
    """The fewest bits, sign included, whose maximum 2^(WL − 1) − 1 is at most half a step short of `steps` > 0."""
    _, exponent = math.frexp(steps)
    return exponent + 1 if steps <= math.ldexp(1.0, exponent) - 0.5 else exponent + 2


def rounded_below(edges: NDArray[np.float64], precision: Precision, dtype: torch.dtype) -> NDArray[np.float64]:
    """Thresholds t with `Q(w) < edge` exactly where `w ≤ t`: Q rounds half to even and saturates as for `dtype`.

    Q(w) = k·step lies below the edge when k ≤ K, the last whole number of steps below it. Rounding gives k ≤ K up to
    the cell boundary K + ½, which itself rounds down only where K is even. All of it is exact in float64.
    """
    last = np.ceil(np.ldexp(edges, precision.fraction_length)) - 1
    boundary: NDArray[np.float64] = np.ldexp(last + 0.5, -precision.fraction_length)
    thresholds = np.where(last % 2 == 0, boundary, np.nextafter(boundary, -np.inf))
    _, _, lowest, highest = grid(precision, dtype)
    thresholds[last < lowest] = -np.inf
    thresholds[last >= highest] = np.inf
    return thresholds
