"""float32 arithmetic in integers: numbers m·2^e, and the operations of float32 on them, by int64 arithmetic and shifts.

Slow, literal, and the same on every machine. Mantissas of results of an operation stay below 2^24; within one, below
2^62. Infinities and NaN do not occur.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SIGNIFICAND = 24
"""Bits of float32's significand, the hidden one included."""

_LOWEST = -149
"""The exponent of the smallest float32 number above zero."""

_ROOM = 60
"""Bits of a sum that are kept, from the highest one of its larger term on. What lies below them is not lost: the lowest
bit that is kept says that there is something."""


@dataclass(frozen=True)
class Dyadic:
    """Numbers mantissa·2^exponent.

    Attributes:
        mantissa, exponent: int64, of one shape.
    """

    mantissa: Tensor
    exponent: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Dyadic":
        """Return finite float32 numbers as m·2^e with odd m, or 0·2^0."""
        bits = x.float().contiguous().view(torch.int32).long()
        stored, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
        if bool((stored == 0xFF).any()):
            raise ValueError("an infinite value, or NaN, cannot be computed with in integers")
        mantissa = torch.where(stored > 0, fraction | 1 << 23, fraction)
        exponent = stored.clamp(min=1) - 150
        zeros = bit_length(mantissa & -mantissa) - 1
        mantissa, exponent = mantissa >> zeros.clamp(min=0), exponent + zeros
        return cls(torch.where(bits < 0, -mantissa, mantissa), torch.where(mantissa == 0, 0, exponent))

    def float(self) -> Tensor:
        """Return the numbers as float32, which must hold them."""
        # A power of two is exact in float64, and so is the product with 53 bits or fewer.
        return torch.ldexp(self.mantissa.double(), self.exponent).float()

    def each(self, operation: Callable[[Tensor], Tensor]) -> "Dyadic":
        """Return the numbers elsewhere: the result of an operation that only moves elements, or puts zeros in."""
        return Dyadic(operation(self.mantissa), operation(self.exponent))

    def on_grid(self) -> tuple[Tensor, int]:
        """Return the numbers as multiples of one power of two, and its exponent.

        Raises:
            ValueError: they lie too far apart for 62 bits.
        """
        there = self.mantissa != 0
        lowest = int(self.exponent[there].min()) if bool(there.any()) else 0
        shift = torch.where(there, self.exponent - lowest, 0)
        if bool((bit_length(self.mantissa.abs()) + shift > 62).any()):
            raise ValueError("values lie too far apart to be multiples of one power of two in 62 bits")
        return self.mantissa << shift, lowest


def bit_length(n: Tensor) -> Tensor:
    """Return how many bits numbers n ≥ 0 have: ⌊log₂ n⌋ + 1, and 0 of 0."""
    length = torch.zeros_like(n)
    for step in (32, 16, 8, 4, 2, 1):
        more = n >> step > 0
        length += step * more
        n = torch.where(more, n >> step, n)
    return length + (n > 0)


def shift_to_nearest(n: Tensor, shift: Tensor) -> Tensor:
    """Return n/2^shift rounded to the nearest whole number, half to even; shift ≥ 0, |n| < 2^61."""
    shift = shift.clamp(max=62)
    below = n >> shift
    rest, half = n - (below << shift), (torch.ones_like(shift) << shift) >> 1
    up = (rest > half) | ((rest == half) & (below & 1 == 1))
    return below + (up & (shift > 0))


def nearest_float(mantissa: Tensor, exponent: Tensor) -> Dyadic:
    """Return the float32 numbers nearest to mantissa·2^exponent, half to even."""
    excess = torch.maximum(bit_length(mantissa.abs()) - SIGNIFICAND, _LOWEST - exponent).clamp(min=0)
    return Dyadic(shift_to_nearest(mantissa, excess), exponent + excess)


def add(a: Dyadic, b: Dyadic) -> Dyadic:
    """Return float32's a + b."""
    return nearest_float(*_sum(a, b))


def multiply(a: Dyadic, b: Dyadic) -> Dyadic:
    """Return float32's a·b."""
    return nearest_float(a.mantissa * b.mantissa, a.exponent + b.exponent)


def multiply_add(a: Dyadic, b: Dyadic, c: Dyadic, *, fused: bool) -> Dyadic:
    """Return float32's a·b + c, with one rounding if fused, and with two otherwise."""
    product = Dyadic(a.mantissa * b.mantissa, a.exponent + b.exponent)
    return add(product if fused else nearest_float(product.mantissa, product.exponent), c)


def compare(a: Dyadic, b: Dyadic) -> Tensor:
    """Return −1, 0 or 1 where a is less than, equal to or greater than b."""
    return _sum(a, Dyadic(-b.mantissa, b.exponent))[0].sign()


def whole(a: Dyadic) -> Dyadic:
    """Return the whole numbers nearest to a, half to even."""
    mantissa = shift_to_nearest(a.mantissa, (-a.exponent).clamp(min=0))
    return Dyadic(mantissa, torch.where(mantissa == 0, 0, a.exponent.clamp(min=0)))


def divide(a: Dyadic, n: int) -> Dyadic:
    """Return float32's a/n."""
    room = 61 - SIGNIFICAND
    quotient = (a.mantissa.abs() << room) // n
    # The lowest bit says whether something is left.
    quotient = quotient | ((quotient * n != a.mantissa.abs() << room).long())
    return nearest_float(quotient * a.mantissa.sign(), a.exponent - room)


def total(a: Dyadic, dimensions: list[int], *, keepdim: bool) -> Dyadic:
    """Return the sum over some dimensions, rounded once, of terms cut to 30 bits below the largest one's last."""
    top = torch.where(a.mantissa == 0, -(2**20), a.exponent + bit_length(a.mantissa.abs()))
    base = top.amax(dimensions, keepdim=True).clamp(min=-(2**10)) - SIGNIFICAND - 30
    shift = a.exponent - base
    aligned = torch.where(shift >= 0, a.mantissa << shift.clamp(0, 61), a.mantissa >> (-shift).clamp(0, 62))
    result = nearest_float(aligned.sum(dimensions, keepdim=True), base)
    return result if keepdim else result.each(lambda t: t.squeeze(dimensions))


def order(a: Dyadic) -> Tensor:
    """Return whole numbers that are ordered as the numbers are, and different where these are."""
    length = bit_length(a.mantissa.abs())
    magnitude = (a.exponent + length + 2**10 << SIGNIFICAND) + (a.mantissa.abs() << (SIGNIFICAND - length).clamp(min=0))
    return torch.where(a.mantissa == 0, 0, magnitude * a.mantissa.sign())


def from_order(key: Tensor) -> Dyadic:
    """Return the numbers whose `order` these are."""
    # The leading bit of the mantissa was added to the field above it.
    field = (key.abs() >> SIGNIFICAND - 1) - 1 >> 1
    mantissa = key.abs() - (field << SIGNIFICAND)
    exponent = field - 2**10 - SIGNIFICAND
    return Dyadic(torch.where(key == 0, 0, mantissa * key.sign()), torch.where(key == 0, 0, exponent))


def _sum(a: Dyadic, b: Dyadic) -> tuple[Tensor, Tensor]:
    """The exact sum's mantissa and exponent, as far as rounding it to float32 and its sign can tell."""
    zero_a, zero_b = a.mantissa == 0, b.mantissa == 0
    exponent_a = torch.where(zero_a, b.exponent, a.exponent)
    exponent_b = torch.where(zero_b, exponent_a, b.exponent)
    top = torch.maximum(exponent_a + bit_length(a.mantissa.abs()), exponent_b + bit_length(b.mantissa.abs()))
    base = torch.maximum(torch.minimum(exponent_a, exponent_b), top - _ROOM)
    return _moved(a.mantissa, exponent_a - base) + _moved(b.mantissa, exponent_b - base), base


def _moved(mantissa: Tensor, shift: Tensor) -> Tensor:
    """mantissa·2^shift; of what is shifted out, the lowest bit says that it was there."""
    right = (-shift).clamp(0, 62)
    below = mantissa >> right
    below = below | ((below << right) != mantissa).long()
    return torch.where(shift >= 0, mantissa << shift.clamp(0, 62), below)
