"""Block floating point: one word length, and a power-of-two scale computed from each tensor's values."""

import math
from dataclasses import dataclass

from adapt.numerics.fixed_point import HIGHEST_FRACTION, LOWEST_FRACTION, Precision

LARGEST = (2 - 2**-23) * 2.0**127
"""The largest finite float32 number."""


@dataclass(frozen=True)
class BlockFloat:
    """Words of `word_length` bits with one power-of-two scale for each tensor, computed from the tensor being rounded.

    `block_precision` gives the scale, so every rounded tensor lies on the grid of an ordinary `Precision`.

    Args:
        word_length: bits of the whole word including the sign, 2 to 32.

    Raises:
        TypeError, ValueError: as in `Precision`.
    """

    word_length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "word_length", Precision(self.word_length, 0).word_length)

    def precision(self, minimum: float, maximum: float) -> Precision:
        """Return the format of a tensor with these extremes: see `block_precision`."""
        return block_precision(minimum, maximum, self.word_length)


def block_precision(minimum: float, maximum: float, word_length: int) -> Precision:
    """AdaPT 2.2 (MuPPET), second formula: s = ⌊log₂ min((UB + 0.5)/max, (LB − 0.5)/min)⌋; the fraction length is s.

    UB = 2^(WL−1) − 1 and LB = −2^(WL−1) are the ends of the word, so values saturate by at most half a step. The
    quotients are compared exactly. The formula does not cover these cases: a maximum below zero, or a minimum above it,
    imposes no bound; a tensor that is empty or all zero gets the format of values below 1; an infinite or NaN extreme
    counts as the largest float32 number; s is clamped to the fraction lengths of `Precision`.

    Args:
        minimum, maximum: the tensor's extremes; (∞, −∞) for an empty one.
        word_length: WL, 2 to 32 bits.
    """
    half = 2.0 ** (word_length - 1)
    scales = []
    for end, extreme in ((half - 0.5, maximum), (half + 0.5, -minimum)):
        # This also replaces NaN, which is not below anything.
        size = extreme if extreme < LARGEST else LARGEST
        if size > 0:
            scales.append(_floor_log2(end, size))
    scale = min(scales, default=word_length - 1)
    return Precision(word_length, max(LOWEST_FRACTION, min(scale, HIGHEST_FRACTION)))


def _floor_log2(numerator: float, denominator: float) -> int:
    """Return ⌊log₂(numerator/denominator)⌋ of positive numbers, without the error of a division."""
    (above, high), (below, low) = math.frexp(numerator), math.frexp(denominator)
    return high - low - (above < below)
