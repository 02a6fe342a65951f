"""PushUp: the precision that lets a layer keep learning."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adapt import arguments
from adapt.numerics import HIGHEST_FRACTION, LONGEST_WORD, Precision
from adapt.rounding import quantize
from adapt.switching.diversity import diversity as gradient_diversity
from adapt.switching.diversity import log_diversity

STRATEGIES = ("min", "mean", "max")
"""How the two suggestions of eq. 4 are combined, from the shortest to the longest word."""


def suggest(diversity: float, fraction_length: int, strategy: str) -> int:
    """AdaPT eq. 4: by how many bits the fraction should exceed FL_min.

    With x = log Δs − 1, s1 = clamp(⌈1/x⌉, 1, 32) for x > 0 and 1 otherwise: the printed ⌈1/x⌉ is singular at Δs = e and
    negative below it. s2 = max(min(⌈32·log²Δs − 1⌉, 32) − FL_min, 1). If log Δs ≤ 0, s = 1.

    Args:
        diversity: Δs; anything outside (0, ∞) counts as log Δs = 1.
        fraction_length: FL_min in bits, from PushDown.
        strategy: "min", "mean" (rounded up) or "max" of s1 and s2.

    Returns:
        s in bits, at least 1.

    Raises:
        TypeError: the diversity is not a number, or the fraction length not an integer.
        ValueError: the strategy is unknown.
    """
    arguments.check_option("strategy", strategy, STRATEGIES)
    fraction_length = arguments.whole("fraction_length", fraction_length, "bits")
    logarithm = log_diversity(diversity)
    if logarithm <= 0:
        return 1
    excess = logarithm - 1
    first = max(math.ceil(min(1 / excess, LONGEST_WORD)), 1) if excess > 0 else 1
    second = max(min(math.ceil(32 * logarithm**2 - 1), LONGEST_WORD) - fraction_length, 1)
    if strategy == "min":
        return min(first, second)
    if strategy == "mean":
        return -(-(first + second) // 2)
    return max(first, second)


def push_up(lowest: Precision, diversity: float, strategy: str, buffer_bits: int) -> Precision:
    """AdaPT eq. 4 and "limited range": the new format of a layer.

    FL = min(FL_min + s, 32 − buffer), WL = max(min(FL + buffer, 32), WL_min) with s from `suggest`.

    Args:
        lowest: ⟨WL_min, FL_min⟩ from PushDown.
        diversity: Δs of the window's gradients.
        strategy: "min", "mean" or "max".
        buffer_bits: sign and integer bits kept for sums and for weights that grow, 0 to 32.

    Raises:
        TypeError: lowest is not a Precision, the diversity not a number, or buffer_bits not an integer.
        ValueError: the strategy is unknown or buffer_bits outside 0 to 32.
    """
    lowest = arguments.precision("lowest", lowest)
    suggestion = suggest(diversity, lowest.fraction_length, strategy)
    return _buffered(lowest.word_length, lowest.fraction_length + suggestion, buffer_bits)


def push_up_by_diversity(
    lowest: Precision, current: Precision, gradients: Sequence[Tensor], *, buffer_bits: int
) -> Precision:
    """AdaPT alg. 4: raise the format one bit at a time while gradients are less diverse in it than in the current one.

    Each step adds a bit to word and fraction, up to 32 bits; the buffer bits are added last, as in `push_up`. Gradients
    are rounded to nearest, so that the result depends only on the arguments and compares formats; the noise of
    stochastic rounding would add its own diversity, larger in coarser formats. A window whose gradients all round to
    zero has diversity 0 here, not ∞ as in eq. 3: nothing can be learned from it, so the format rises.

    Args:
        lowest: ⟨WL_min, FL_min⟩ from PushDown, where the search starts.
        current: the layer's format during the window.
        gradients: the window's finite gradients, all of one shape and on one device.
        buffer_bits: sign and integer bits kept for sums and for weights that grow, 0 to 32.

    Raises:
        TypeError: lowest or current is not a Precision or buffer_bits not an integer.
        ValueError: buffer_bits is outside 0 to 32.
    """
    lowest, current = arguments.precision("lowest", lowest), arguments.precision("current", current)
    enough = _quantized_diversity(gradients, current)
    word_length, fraction_length = lowest.word_length, lowest.fraction_length
    while (
        word_length < LONGEST_WORD
        and fraction_length < HIGHEST_FRACTION
        and _quantized_diversity(gradients, Precision(word_length, fraction_length)) < enough
    ):
        word_length, fraction_length = word_length + 1, fraction_length + 1
    return _buffered(word_length, fraction_length, buffer_bits)


def _quantized_diversity(gradients: Sequence[Tensor], precision: Precision) -> float:
    """Return Δs of the gradients rounded to the precision; 0 if all of them become zero."""
    if not gradients:
        return 0.0
    total = torch.zeros_like(gradients[0], dtype=torch.float64)
    norms = torch.zeros((), dtype=torch.float64, device=total.device)
    for gradient in gradients:
        quantized = quantize(gradient, precision).to(torch.float64)
        total += quantized
        norms += torch.linalg.vector_norm(quantized)
    sum_of_norms, norm_of_sum = torch.stack([norms, torch.linalg.vector_norm(total)]).tolist()
    return 0.0 if sum_of_norms == 0 else gradient_diversity(sum_of_norms, norm_of_sum)


def _buffered(word_length: int, fraction_length: int, buffer_bits: int) -> Precision:
    """AdaPT "limited range": FL at most 32 − buffer, and at least `buffer_bits` bits for sign and integer."""
    buffer_bits = arguments.whole("buffer_bits", buffer_bits, "bits")
    if not 0 <= buffer_bits <= LONGEST_WORD:
        raise ValueError(f"buffer_bits must lie between 0 and {LONGEST_WORD}, got {buffer_bits}")
    fraction_length = min(fraction_length, LONGEST_WORD - buffer_bits)
    return Precision(max(min(fraction_length + buffer_bits, LONGEST_WORD), word_length), fraction_length)
