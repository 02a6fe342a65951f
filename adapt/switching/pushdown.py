"""PushDown: the smallest precision that loses nothing a histogram could show."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.precision import HIGHEST_FRACTION, LONGEST_WORD, LOWEST_FRACTION, SHORTEST_WORD, Precision
from adapt.rounding import grid
from adapt.switching.divergence import (
    below,
    bin_counts,
    bin_edges,
    checked_resolution,
    extent,
    in_order,
    kullback_leibler,
)


def push_down(weights: Tensor, *, resolution: int, tolerance: float) -> Precision:
    """AdaPT alg. 3: the smallest format ⟨WL_min, FL_min⟩ whose divergence from the weights is within the tolerance.

    FL_min is found by bisection over the formats of `candidates`, each tried with nearest rounding. The divergence is
    not strictly monotone in FL; the answer itself passes, and the next coarser candidate fails unless there is none.
    Where bisection meets none that passes (values close to a bin edge at tolerance 0), the answer is the finest one:
    32 bits, or fewer where FL ends at 126 first.

    Args:
        weights: master weights of one layer, any shape, device and floating-point type.
        resolution: number of bins r, at least 1.
        tolerance: largest divergence in bits, at least 0; 0 asks for equal histograms.

    Returns:
        ⟨WL_min, FL_min⟩. An empty or all-zero tensor answers ⟨2, 0⟩, another constant one its coarsest candidate.

    Raises:
        TypeError: weights is not a floating-point tensor, or the resolution not an integer.
        ValueError: the weights hold NaN, Inf or values that no format reaches, the resolution is below 1, or the
            tolerance is negative or not finite.
    """
    return lowest_precision(weights, resolution=resolution, tolerance=tolerance)[0]


def lowest_precision(weights: Tensor, *, resolution: int, tolerance: float) -> tuple[Precision, float]:
    """What `push_down` answers, and the divergence in bits that this format leaves; arguments and errors as there.

    The weights are sorted once. Every candidate's histogram then follows from how many weights lie below each bin
    edge moved to the boundary of a rounding cell (`rounded_below`); no candidate quantises the tensor.
    """
    resolution = checked_resolution(resolution)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a finite number of bits, at least 0, got {tolerance}")
    ascending = in_order(weights, "weights")
    low, high = extent(ascending, "weights")
    if low == high == 0:
        return Precision(SHORTEST_WORD, 0), 0.0
    formats = candidates(max(-low, high))
    if low == high:
        return formats[0], 0.0

    edges = bin_edges(low, high, resolution)
    thresholds = np.concatenate([below(edges)[None], rounded_below(edges, formats, weights.dtype)])
    original, *quantized = bin_counts(ascending, thresholds)
    failing, passing = -1, len(formats) - 1
    lost = kullback_leibler(quantized[passing], original)
    while passing - failing > 1:
        middle = (failing + passing) // 2
        middle_lost = kullback_leibler(quantized[middle], original)
        if middle_lost <= tolerance:
            passing, lost = middle, middle_lost
        else:
            failing = middle
    return formats[passing], lost


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


def rounded_below(edges: NDArray[np.float64], formats: list[Precision], dtype: torch.dtype) -> NDArray[np.float64]:
    """Thresholds t with `Q(w) < edge` exactly where `w ≤ t`: [formats, edges]. Q is `quantize` for weights of `dtype`.

    Q(w) = k·step lies below the edge when k ≤ K, the last whole number of steps below it. Rounding gives k ≤ K up to
    the cell boundary K + ½, which itself rounds down only where K is even; saturation moves no k past the ends of the
    range. All of it is exact in float64.
    """
    steps = np.array([[precision.step] for precision in formats])
    ends = np.array([grid(precision, dtype)[2:] for precision in formats], np.float64)
    last = np.ceil(edges / steps) - 1
    boundaries = (last + 0.5) * steps
    thresholds = np.where(last % 2 == 0, boundaries, below(boundaries))
    thresholds[last < ends[:, :1]] = -np.inf
    thresholds[last >= ends[:, 1:]] = np.inf
    return thresholds
