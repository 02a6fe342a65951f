"""Rounding to a fixed-point grid in exact rational arithmetic, one value at a time."""

from fractions import Fraction
from math import floor, isinf, isnan

import torch


def bounds(word_length: int, fraction_length: int, dtype: torch.dtype) -> tuple[Fraction, Fraction]:
    """The lowest and the highest grid value that `dtype` holds, found by walking inwards from the format's own ends."""
    step = Fraction(2) ** -fraction_length
    limit = Fraction(torch.finfo(dtype).max)
    ends = []
    for end in (-(2 ** (word_length - 1)) * step, (2 ** (word_length - 1) - 1) * step):
        sign = 1 if end >= 0 else -1
        value = floor(min(abs(end), limit) / step) * step
        while not holds(value, dtype):
            # Drop the lowest bit that is set: the next value towards zero with a shorter significand.
            count = value / step
            value = (int(count) & (int(count) - 1)) * step
        ends.append(sign * value)
    return ends[0], ends[1]


def holds(value: Fraction, dtype: torch.dtype) -> bool:
    # A word of 32 bits times a power of two is exact in Python's floats unless it is out of their range.
    return Fraction(torch.tensor(float(value), dtype=torch.float64).to(dtype).double().item()) == value


def quantize(
    x: float, word_length: int, fraction_length: int, dtype: torch.dtype, draw: Fraction | None = None
) -> list[float]:
    """What x may become: one value, or both neighbours where float rounding of the fraction may decide the draw."""
    if isnan(x):
        return [x]
    low, high = bounds(word_length, fraction_length, dtype)
    if isinf(x):
        return [float(high if x > 0 else low)]
    step = Fraction(2) ** -fraction_length
    v = Fraction(x) / step
    below = floor(v)
    if draw is None:
        fraction = v - below
        candidates = [below + (fraction > Fraction(1, 2) or (fraction == Fraction(1, 2) and below % 2 == 1))]
    elif v == below:
        candidates = [below]
    elif abs(draw - (v - below)) < Fraction(1, 2**24):
        candidates = [below, below + 1]
    else:
        candidates = [below + (draw < v - below)]
    return [float(min(max(k * step, low), high)) for k in candidates]


def uniform(key: int, index: int) -> Fraction:
    """The draw of element `index` in the stream of a 64-bit key, in integers."""
    low, high, bits = key % 2**32, key >> 32, 2**32
    x = (index % bits) ^ low
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % bits
    x = ((x ^ (x >> 15) ^ high) * 0x846CA68B) % bits
    return Fraction((x ^ (x >> 16)) >> 8, 2**24)
