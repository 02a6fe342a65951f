"""One fixed-point format: signed two's complement, ⟨word length, fraction length⟩."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

Bounds = tuple[int, int]
"""The fewest and the most bits of a word."""

SHORTEST_WORD, LONGEST_WORD = 2, 32
LOWEST_FRACTION, HIGHEST_FRACTION = -126, 126
"""Fraction lengths whose step 2^−FL and its reciprocal are both normal float32 numbers."""


@dataclass(frozen=True, order=True)  # without slots: configuration tools read vars()
class Precision:
    """The fixed-point format ⟨WL, FL⟩: multiples of 2^−FL that fit a two's complement word of WL bits.

    Args:
        word_length: WL, bits of the whole word including the sign, 2 to 32.
        fraction_length: FL, bits behind the binary point, −126 to 126. It may exceed the word length
            (weights well below 1) or be negative (weights well above 1).

    Raises:
        TypeError: a length is not an integer.
        ValueError: a length is outside its range.
    """

    word_length: int
    fraction_length: int

    def __post_init__(self) -> None:
        for name, low, high in (
            ("word_length", SHORTEST_WORD, LONGEST_WORD),
            ("fraction_length", LOWEST_FRACTION, HIGHEST_FRACTION),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name} must be an integer, got {value!r}: a format counts whole bits")
            value = value.__index__()
            if not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high} bits, got {value}")
            object.__setattr__(self, name, value)

    @property
    def widest(self) -> "Precision":
        """The format itself: see `ChannelPrecision.widest`."""
        return self

    @property
    def integer_length(self) -> int:
        """IL = WL − FL: bits before the binary point, including the sign. May be negative."""
        return self.word_length - self.fraction_length

    @property
    def step(self) -> float:
        """Distance between neighbouring grid values, 2^−FL."""
        return 2.0**-self.fraction_length

    @property
    def minimum(self) -> float:
        """Smallest grid value, −2^(IL − 1)."""
        return -(2.0 ** (self.integer_length - 1))

    @property
    def maximum(self) -> float:
        """Largest grid value, 2^(IL − 1) − 2^−FL."""
        return 2.0 ** (self.integer_length - 1) - self.step

    def __str__(self) -> str:
        return f"⟨{self.word_length}, {self.fraction_length}⟩"


def largest_held(limit: int, fraction_length: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the largest word k up to `limit` for which `dtype` represents k·2^−FL exactly.

    Args:
        limit: the largest word of the format, at least 0.
        fraction_length: FL.
        dtype: a floating-point type.
    """
    information = torch.finfo(dtype)
    limit = min(limit, int(Fraction(information.max) * Fraction(2) ** fraction_length))
    significand_bits = 1 - int(np.log2(information.eps))
    smallest_exponent = int(np.log2(information.smallest_normal)) + 1 - significand_bits
    lost_bits = max(limit.bit_length() - significand_bits, fraction_length + smallest_exponent, 0)
    return limit >> lost_bits << lost_bits
