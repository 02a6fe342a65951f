"""float32 arithmetic in integers, number by number: a number is mantissa·2^exponent, two 64-bit whole numbers.

Literal, and the same on every machine. Mantissas of results stay below 2^24; within an operation, below 2^62.
Infinities and NaN do not occur.
"""

from collections.abc import Callable, Collection
from typing import Any


def _uncompiled(
    function: Callable[..., Any], *, fastmath: Collection[str] = (), inline: str = "never"
) -> Callable[..., Any]:
    return function


try:
    from adapt.kernels.numba_.compiler import compiled
except ImportError:
    compiled = _uncompiled  # Numba's compiler is turned off: the same functions run, only slowly.


SIGNIFICAND = 24
"""Bits of float32's significand, the hidden one included."""

LOWEST = -149
"""The exponent of the smallest float32 number above zero."""

_ROOM = 60
"""The number of bits of a sum that are kept, from the highest bit of its larger term on. What lies below them is not
lost: the lowest bit that is kept says that there is something."""


@compiled
def _length(n: int) -> int:
    """⌊log₂ |n|⌋ + 1, and 0 of 0."""
    n = abs(n)
    length = 0
    for step in (32, 16, 8, 4, 2, 1):
        if n >> step > 0:
            n >>= step
            length += step
    return length + (n > 0)


@compiled
def _shifted(n: int, shift: int) -> int:
    """n/2^shift rounded to the nearest whole number, half to even; shift ≥ 0, |n| < 2^61."""
    if shift == 0:
        return n
    shift = min(shift, 62)
    below = n >> shift
    rest, half = n - (below << shift), 1 << (shift - 1)
    return below + (rest > half or (rest == half and below & 1 == 1))


@compiled
def _nearest(mantissa: int, exponent: int) -> tuple[int, int]:
    """The float32 number nearest to mantissa·2^exponent, half to even."""
    excess = max(_length(mantissa) - SIGNIFICAND, LOWEST - exponent, 0)
    return _shifted(mantissa, excess), exponent + excess


@compiled
def _moved(mantissa: int, shift: int) -> int:
    """mantissa·2^shift; of what is shifted out, the lowest bit says that it was there."""
    if shift >= 0:
        return mantissa << shift
    shift = min(-shift, 62)
    below = mantissa >> shift
    return below | (below << shift != mantissa)


@compiled
def _sum(a: int, exponent_a: int, b: int, exponent_b: int) -> tuple[int, int]:
    """The exact sum, as far as its sign and rounding it to float32 can tell."""
    if a == 0:
        return b, exponent_b
    if b == 0:
        return a, exponent_a
    top = max(exponent_a + _length(a), exponent_b + _length(b))
    base = max(min(exponent_a, exponent_b), top - _ROOM)
    return _moved(a, exponent_a - base) + _moved(b, exponent_b - base), base


# Arrays of numbers: int64 of one length each, with the results last


@compiled
def lengths(n: Any, result: Any) -> None:
    for i in range(n.size):
        result[i] = _length(n[i])


@compiled
def shift_each(n: Any, shift: Any, result: Any) -> None:
    for i in range(n.size):
        result[i] = _shifted(n[i], shift[i])


@compiled
def round_each(m: Any, e: Any, mantissa: Any, exponent: Any) -> None:
    for i in range(m.size):
        mantissa[i], exponent[i] = _nearest(m[i], e[i])


@compiled
def add_each(a: Any, exponent_a: Any, b: Any, exponent_b: Any, mantissa: Any, exponent: Any) -> None:
    for i in range(a.size):
        m, e = _sum(a[i], exponent_a[i], b[i], exponent_b[i])
        mantissa[i], exponent[i] = _nearest(m, e)


@compiled
def compare_each(a: Any, exponent_a: Any, b: Any, exponent_b: Any, result: Any) -> None:
    for i in range(a.size):
        m, _ = _sum(a[i], exponent_a[i], -b[i], exponent_b[i])
        result[i] = (m > 0) - (m < 0)
