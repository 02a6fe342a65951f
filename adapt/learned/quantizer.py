"""Rounding with a learned step and range, which determine the word length (Schaefer et al. eq. 1)."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adapt import arguments
from adapt.arguments import check_option
from adapt.kernels.learned_steps import Partials, Row, partials, rounded
from adapt.learned.scaling import DELTA, SCALINGS, check_delta

_SLACK = 1e-4
"""A width that exceeds a whole number of bits by less than this is rounded down: ranges are float32."""


def limit(bits: Tensor | int, signed: Tensor | bool) -> Tensor:
    """Return the largest multiple of the step in a word: 2^(b−1) − 1 if signed, 2^b − 1 if not."""
    return torch.exp2(torch.as_tensor(bits, dtype=torch.float32) - torch.as_tensor(signed).float()) - 1


def continuous_width(step: Tensor, maximum: Tensor, signed: Tensor | bool) -> Tensor:
    """Return log₂(q₊/d + 1), + 1 if signed: the word length before rounding up."""
    return torch.log2(maximum / step + 1) + torch.as_tensor(signed).float()


def word_length(step: Tensor, maximum: Tensor, signed: Tensor | bool, *, floor: int = 2) -> Tensor:
    """Return b = ⌈log₂(q₊/d + 1)⌉, + 1 for signed values, at least `floor` bits; int64 (Schaefer et al. 2).

    Two signed bits are −d, 0, d, as long as d ≤ 2·q₊. With floor 1 a signed format with a larger step has one bit: its
    values are ±q₊.

    Args:
        step, maximum: d and q₊, positive, of one shape.
        signed: whether values of both signs occur; a bool or a tensor that broadcasts.
        floor: the fewest bits, 1 or 2.
    """
    bits = torch.ceil(continuous_width(step, maximum, signed) - _SLACK).long()
    if floor == 1:
        bits = torch.where(is_sign(step, maximum, signed, floor), 1, bits)
    return bits.clamp(min=floor)


def is_sign(step: Tensor, maximum: Tensor, signed: Tensor | bool, floor: int) -> Tensor:
    """Return where a format has one signed bit, whose values are ±q₊."""
    return (
        torch.as_tensor(signed).to(step.device) & (2 * maximum < step) if floor == 1 else torch.zeros_like(step).bool()
    )


def range_row(step: Tensor, maximum: Tensor, signed: Tensor | bool, *, floor: int = 2) -> Row:
    """Return the kernels' row for formats with step d and range ±q₊, or [0, q₊] if unsigned."""
    ratio = torch.minimum(maximum / step, limit(word_length(step, maximum, signed, floor=floor), signed).to(step))
    sign = is_sign(step, maximum, signed, floor)
    width = torch.where(sign, 2 * maximum, step)
    half = torch.full_like(step, 0.5)
    high = torch.where(sign, half, ratio)
    low = torch.where(torch.as_tensor(signed).to(step.device), -high, torch.zeros_like(high))
    return Row(1 / width, width, low, high, torch.where(sign, half, torch.zeros_like(half)))


def range_gradients(
    sums: Sequence[Tensor], step: Tensor, maximum: Tensor, signed: Tensor | bool, *, floor: int = 2
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of d and q₊ from the kernels' first three sums: of the row's step, above and below.

    For one signed bit the levels are ±q₊, so the row's step is 2·q₊ and does not depend on d.
    """
    to_step, above, below = sums
    sign = is_sign(step, maximum, signed, floor)
    ends = above - torch.where(torch.as_tensor(signed).to(step.device), below, torch.zeros_like(below))
    zero = torch.zeros_like(to_step)
    return torch.where(sign, zero, to_step), ends + torch.where(sign, 2 * to_step, zero)


def quantize(
    x: Tensor,
    step: Tensor,
    maximum: Tensor,
    *,
    signed: bool = True,
    scaling: str = "ste",
    delta: float = DELTA,
    floor: int = 2,
) -> Tensor:
    """Schaefer et al. eq. 1: d·round(clip(x, −q₊, q₊)/d), or clip(x, 0, q₊) for unsigned values; differentiable.

    The gradients with respect to x, d and q₊ are those of the formula, with the derivative of round replaced by the
    scaling's factor, which is 1 for "ste". Rounding is half to even.

    Args:
        x: float32 values.
        step, maximum: d and q₊, positive, of shapes that broadcast with `x`: one element for a tensor, [C, 1, …] for
            the channels of a weight.
        signed: whether x has both signs.
        scaling: one of `adapt.learned.SCALINGS`.
        delta: δ of the scaling.
        floor: the fewest bits, 2 or 1. With 1, a signed format with d > 2·q₊ has the values ±q₊.

    Raises:
        TypeError, ValueError: an argument is not a tensor, a step or range is not positive and finite, or the scaling,
            δ or the floor is invalid.
    """
    check_option("scaling", scaling, SCALINGS)
    check_delta(delta)
    check_floor(floor)
    check_tensor("x", x)
    check_tensor("step", step)
    check_tensor("maximum", maximum)
    if not all(bool((value > 0).all() and (value < math.inf).all()) for value in (step, maximum)):
        raise ValueError("step and maximum must be above 0 everywhere, and finite")
    step, maximum = torch.broadcast_tensors(step, maximum)  # type: ignore[no-untyped-call]
    sign = is_sign(step.detach(), maximum.detach(), signed, floor)
    width = torch.where(sign, 2 * maximum, step)
    lower = -maximum if signed else torch.zeros_like(maximum)
    offset = torch.where(sign, 0.5, 0.0)
    return rounding(x, width, lower, maximum, offset, scaling, delta)


def rounding(
    x: Tensor, step: Tensor, lower: Tensor, upper: Tensor, offset: Tensor, scaling: str, delta: float
) -> Tensor:
    """Return d·(round(v − o) + o) with v = clip(x, lower, upper)/d, differentiable in x, d, lower and upper."""
    return _Rounding.apply(x, step, lower, upper, offset, scaling, delta)  # type: ignore[no-untyped-call, no-any-return]


def check_tensor(name: str, value: object) -> None:
    """Check that a value is a floating-point tensor, not a plain number.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, Tensor):
        hint = f": pass torch.tensor({value!r})" if isinstance(value, Real) else ""
        raise TypeError(f"{name} must be a tensor, got {value!r:.80}{hint}")
    arguments.tensor(name, value)


def check_floor(floor: object) -> None:
    """Check the fewest bits of a format.

    Raises:
        ValueError: it is neither 1 nor 2.
    """
    if floor not in (1, 2) or isinstance(floor, bool):
        raise ValueError(f"floor must be 1 or 2 bits, got {floor!r}")


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, lower: Tensor, upper: Tensor, offset: Tensor, scaling: str, delta: float
    ) -> Tensor:
        inverse = 1 / step
        row = Row(inverse, step, lower * inverse, upper * inverse, offset)
        ctx.save_for_backward(x, *row)
        ctx.scaling, ctx.delta = scaling, delta
        ctx.shapes = step.shape, lower.shape, upper.shape
        return rounded(x, row)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *row = ctx.saved_tensors
        back: Partials = partials(gradients[0], x, Row(*row), ctx.scaling, ctx.delta)
        step, lower, upper = ctx.shapes
        return (
            back.values,
            back.step.sum_to_size(step),
            back.below.sum_to_size(lower),
            back.above.sum_to_size(upper),
            None,
            None,
            None,
        )
