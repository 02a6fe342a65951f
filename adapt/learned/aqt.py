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
"""Bounds of a range, so that a step and its inverse are finite and above 0."""


def check_width(name: str, bits: object) -> None:
    """Refuse what is no word length of AQT. One bit could hold nothing but 0.

    Raises:
        ValueError: it is no whole number from 2 to 8.
    """
    if not (is_whole(bits) and SHORTEST <= bits <= LONGEST):
        raise ValueError(f"{name} must be a whole number of {SHORTEST} to {LONGEST} bits, got {bits!r}")


def step(maximum: Tensor, bits: Tensor | int, signed: Tensor | bool) -> Tensor:
    """AQT 3.1, 1/S: max|x|/(2^(b−1) − 1) with a sign, max|x|/(2^b − 1) without.

    Args:
        maximum: max|x|, above 0.
        bits: b, of a shape that broadcasts with it.
        signed: whether values of both signs occur, likewise.
    """
    return maximum / limit(bits, signed).to(maximum)


def row(maximum: Tensor, bits: Tensor | int, signed: Tensor | bool) -> Row:
    """AQT 3.1 as the kernels' row: clip to ±max|x|, or from 0 without a sign, and round to multiples of the step."""
    width = step(maximum, bits, signed)
    inverse = 1 / width
    # Not the whole number that it is close to: the largest value must count as inside, where the gradient passes.
    high = maximum * inverse
    low = torch.where(torch.as_tensor(signed, device=high.device), -high, torch.zeros_like(high))
    return Row(inverse, width, low, high, torch.zeros_like(high))


def moving_average(average: Tensor, maximum: Tensor, decay: float) -> Tensor:
    """AQT 3.2: decay·average + (1 − decay)·max|x|, the exponential moving average of an activation's range."""
    return decay * average + (1 - decay) * maximum


def aqt(x: Tensor, maximum: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """AQT 3.1: round(clip(x, ±max)·S)/S, S = (2^(b−1) − 1)/max; clip(x, 0, max) and (2^b − 1)/max without a sign.

    The gradient to x is 1 inside of the range and 0 outside; the range gets none. Rounding is half to even.

    Args:
        x: float32 values.
        maximum: the range, positive, of a shape that broadcasts with `x`: one element for a tensor, [C, 1, …] for the
            channels of a weight.
        bits: b, 2 to 8.
        signed: whether x has both signs.

    Raises:
        TypeError, ValueError: no tensor, a range that is not positive and finite, or no such word length.
    """
    check_tensor("x", x)
    check_tensor("maximum", maximum)
    check_width("bits", bits)
    if not bool((maximum > 0).all() and (maximum < math.inf).all()):
        raise ValueError("maximum must be above 0 everywhere, and finite")
    top = maximum.detach()
    width = step(top, bits, signed)
    return rounding(x, width, -top if signed else torch.zeros_like(top), top, torch.zeros_like(top), "ste", DELTA)
