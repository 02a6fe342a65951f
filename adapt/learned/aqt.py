"""Uniform symmetric rounding whose range is the largest magnitude (AQT: Pareto-Optimal Quantized ResNet, section 3)."""

import math

import torch
from torch import Tensor

from adapt.arguments import is_whole
from adapt.kernels.learned_steps import Row
from adapt.learned.quantizer import check_tensor, limit, rounding
from adapt.learned.scaling import DELTA

SHORTEST, LONGEST = 2, 8
SMALLEST, LARGEST = 2.0**-100, 2.0**100
"""Bounds of a range, within which a step and its inverse are finite and above 0."""


def check_width(name: str, bits: object) -> None:
    """Check that `bits` is a word length that AQT supports. One bit could only represent 0.

    Raises:
        ValueError: it is not a whole number from 2 to 8.
    """
    if not (is_whole(bits) and SHORTEST <= bits <= LONGEST):
        raise ValueError(f"{name} must be a whole number of {SHORTEST} to {LONGEST} bits, got {bits!r}")


def step(maximum: Tensor, bits: Tensor | int, signed: Tensor | bool) -> Tensor:
    """Return AQT 3.1's 1/S: max|x|/(2^(b−1) − 1) for signed values, max|x|/(2^b − 1) for unsigned ones.

    Args:
        maximum: max|x|, above 0.
        bits: b, of a shape that broadcasts with `maximum`.
        signed: whether values of both signs occur, of a shape that broadcasts with `maximum`.
    """
    return maximum / limit(bits, signed).to(maximum)


def row(maximum: Tensor, bits: Tensor | int, signed: Tensor | bool) -> Row:
    """Return AQT 3.1 as the kernels' row: clip to ±max|x|, or [0, max|x|] if unsigned; round to multiples of 1/S."""
    width = step(maximum, bits, signed)
    inverse = 1 / width
    # Not rounded to a whole number: the largest value must count as inside the range, where the gradient passes.
    high = maximum * inverse
    low = torch.where(torch.as_tensor(signed, device=high.device), -high, torch.zeros_like(high))
    return Row(inverse, width, low, high, torch.zeros_like(high))


def moving_average(average: Tensor, maximum: Tensor, decay: float) -> Tensor:
    """Return AQT 3.2's moving average of an activation's range: decay·average + (1 − decay)·max|x|."""
    return decay * average + (1 - decay) * maximum


def aqt(x: Tensor, maximum: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """AQT 3.1: round(clip(x, ±max)·S)/S, S = (2^(b−1) − 1)/max; clip(x, 0, max) and (2^b − 1)/max if unsigned.

    The gradient with respect to x is 1 inside the range and 0 outside; the range gets none. Rounding is half to even.

    Args:
        x: float32 values.
        maximum: the range, positive, of a shape that broadcasts with `x`: one element for a tensor, [C, 1, …] for the
            channels of a weight.
        bits: b, 2 to 8.
        signed: whether x has both signs.

    Raises:
        TypeError, ValueError: an argument is not a tensor, the range is not positive and finite, or the word length is
            not supported.
    """
    check_tensor("x", x)
    check_tensor("maximum", maximum)
    check_width("bits", bits)
    if not bool((maximum > 0).all() and (maximum < math.inf).all()):
        raise ValueError("maximum must be above 0 everywhere, and finite")
    top = maximum.detach()
    width = step(top, bits, signed)
    return rounding(x, width, -top if signed else torch.zeros_like(top), top, torch.zeros_like(top), "ste", DELTA)
