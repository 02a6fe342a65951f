"""Tensors of numbers m·2^e, and float32's operations on them in integers: see `adapt.export.float32`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapt.export.float32 import LOWEST, SIGNIFICAND, add_each, compare_each, lengths, round_each, shift_each


@dataclass(frozen=True)
class Dyadic:
    """Numbers mantissa·2^exponent.

    Attributes:
        mantissa: int64.
        exponent: int64, of the mantissa's shape, or [] where all numbers are multiples of one power of two.
    """

    mantissa: Tensor
    exponent: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Dyadic":
        """Return finite float32 numbers as m·2^e with odd m, or 0·2^0.

        Raises:
            ValueError: one is infinite, or NaN.
        """
        bits = x.float().contiguous().view(torch.int32).long()
        stored, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
        if bool((stored == 0xFF).any()):
            raise ValueError("an infinite value, or NaN, cannot be computed with in integers")
        mantissa = torch.where(stored > 0, fraction | 1 << 23, fraction)
        zeros = (bit_length(mantissa & -mantissa) - 1).clamp(min=0)
        mantissa, exponent = mantissa >> zeros, stored.clamp(min=1) - 150 + zeros
        return cls(torch.where(bits < 0, -mantissa, mantissa), torch.where(mantissa == 0, 0, exponent))

    def float(self) -> Tensor:
        """Return the numbers as float32, which must hold them."""
        # A power of two is exact in float64, and so is the product with 53 bits or fewer.
        return torch.ldexp(self.mantissa.double(), self.exponent).float()

    def each(self, operation: Callable[[Tensor], Tensor]) -> "Dyadic":
        """Apply an operation that only moves elements or inserts zeros."""
        return Dyadic(operation(self.mantissa), operation(self.exponent) if self.exponent.ndim else self.exponent)

    def spread(self) -> "Dyadic":
        """Return the same numbers with an exponent each."""
        return Dyadic(self.mantissa, self.exponent.expand_as(self.mantissa))

    def unbind(self, dimension: int) -> list["Dyadic"]:
        """Return the slices along a dimension."""
        there = self.spread()
        parts = zip(there.mantissa.unbind(dimension), there.exponent.unbind(dimension), strict=True)
        return [Dyadic(*part) for part in parts]

    def on_grid(self) -> tuple[Tensor, int]:
        """Return the numbers as multiples of one power of two, and its exponent.

        Raises:
            ValueError: they lie too far apart for 62 bits.
        """
        if not self.exponent.ndim:
            return self.mantissa, int(self.exponent)
        there = self.mantissa != 0
        lowest = int(self.exponent[there].min()) if bool(there.any()) else 0
        shift = torch.where(there, self.exponent - lowest, 0)
        if bool((bit_length(self.mantissa) + shift > 62).any()):
            raise ValueError("values lie too far apart to be multiples of one power of two in 62 bits")
        return self.mantissa << shift, lowest


def _run(loop: Callable[..., None], results: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    """Run a loop over tensors that broadcast with each other, and return its results in their common shape."""
    tensors = torch.broadcast_tensors(*arguments)  # type: ignore[no-untyped-call]
    arrays = [tensor.contiguous().view(-1).numpy() for tensor in tensors]
    found = [np.empty(arrays[0].size, np.int64) for _ in range(results)]
    loop(*arrays, *found)
    return tuple(torch.from_numpy(array).view(tensors[0].shape) for array in found)


def bit_length(n: Tensor) -> Tensor:
    """Return how many bits the magnitudes of whole numbers have: ⌊log₂ |n|⌋ + 1, and 0 of 0."""
    return _run(lengths, 1, n)[0]


def shift_to_nearest(n: Tensor, shift: Tensor) -> Tensor:
    """Return n/2^shift rounded to the nearest whole number, half to even; shift ≥ 0, |n| < 2^61."""
    return _run(shift_each, 1, n, shift)[0]


def nearest_float(mantissa: Tensor, exponent: Tensor) -> Dyadic:
    """Return the float32 numbers nearest to mantissa·2^exponent, half to even."""
    return Dyadic(*_run(round_each, 2, mantissa, exponent))


def add(a: Dyadic, b: Dyadic) -> Dyadic:
    """Return float32's a + b."""
    return Dyadic(*_run(add_each, 2, a.mantissa, a.exponent, b.mantissa, b.exponent))


def multiply(a: Dyadic, b: Dyadic) -> Dyadic:
    """Return float32's a·b."""
    if b.mantissa.numel() == 1 and int(b.mantissa) == 1:  # a power of two moves the exponent alone
        moved = a.exponent + b.exponent.reshape(())
        if bool((moved >= LOWEST).all()):
            return Dyadic(a.mantissa, moved)
    return nearest_float(a.mantissa * b.mantissa, a.exponent + b.exponent)


def multiply_add(a: Dyadic, b: Dyadic, c: Dyadic, *, fused: bool) -> Dyadic:
    """Return float32's a·b + c, with one rounding if fused, and with two otherwise."""
    exact = Dyadic(a.mantissa * b.mantissa, a.exponent + b.exponent)
    return add(exact if fused else nearest_float(exact.mantissa, exact.exponent), c)


def compare(a: Dyadic, b: Dyadic) -> Tensor:
    """Return −1, 0 or 1 where a is less than, equal to or greater than b."""
    return _run(compare_each, 1, a.mantissa, a.exponent, b.mantissa, b.exponent)[0]


def whole(a: Dyadic) -> Dyadic:
    """Return the whole numbers nearest to a, half to even."""
    below, above = (-a.exponent).clamp(min=0), a.exponent.clamp(min=0)
    mantissa = shift_to_nearest(a.mantissa, below) if bool(below.any()) else a.mantissa
    return Dyadic(mantissa, above if bool(above.any()) else torch.tensor(0))


def divide(a: Dyadic, n: int) -> Dyadic:
    """Return float32's a/n."""
    room = 61 - SIGNIFICAND
    quotient = (a.mantissa.abs() << room) // n
    # The lowest bit says whether there is a remainder.
    quotient = quotient | ((quotient * n != a.mantissa.abs() << room).long())
    return nearest_float(quotient * a.mantissa.sign(), a.exponent - room)


def total(a: Dyadic, dimensions: list[int], *, keepdim: bool) -> Dyadic:
    """Return the sum over some dimensions, rounded once, of terms cut to 30 bits below the largest one's last."""
    top = torch.where(a.mantissa == 0, -(2**20), a.exponent + bit_length(a.mantissa))
    base = top.amax(dimensions, keepdim=True).clamp(min=-(2**10)) - SIGNIFICAND - 30
    shift = a.exponent - base
    aligned = torch.where(shift >= 0, a.mantissa << shift.clamp(0, 61), a.mantissa >> (-shift).clamp(0, 62))
    result = nearest_float(aligned.sum(dimensions, keepdim=True), base)
    return result if keepdim else result.each(lambda t: t.squeeze(dimensions))


def order(a: Dyadic) -> Tensor:
    """Return integers in the same order as the numbers, equal only where the numbers are."""
    length = bit_length(a.mantissa)
    magnitude = (a.exponent + length + 2**10 << SIGNIFICAND) + (a.mantissa.abs() << (SIGNIFICAND - length).clamp(min=0))
    return torch.where(a.mantissa == 0, 0, magnitude * a.mantissa.sign())


def from_order(key: Tensor) -> Dyadic:
    """Return the numbers whose `order` these are."""
    # The leading bit of the mantissa was added to the field above it.
    field = (key.abs() >> SIGNIFICAND - 1) - 1 >> 1
    mantissa = key.abs() - (field << SIGNIFICAND)
    exponent = field - 2**10 - SIGNIFICAND
    return Dyadic(torch.where(key == 0, 0, mantissa * key.sign()), torch.where(key == 0, 0, exponent))
