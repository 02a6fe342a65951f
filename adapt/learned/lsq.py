"""Rounding with a learned step at a given word length (LSQ; complexity–precision trade-off, eq. 3–5)."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.arguments import check_option, is_whole
from adapt.kernels.learned_steps import Row
from adapt.learned.quantizer import check_tensor, rounding
from adapt.learned.scaling import DELTA, SCALINGS, check_delta

LONGEST = 8


def bounds(bits: int, *, signed: bool) -> tuple[int, int]:
    """Return LSQ's Q_N and Q_P: −2^(b−1) and 2^(b−1) − 1 if signed, 0 and 2^b − 1 if not; ±1 for one signed bit.

    Raises:
        ValueError: the word length is not between 1 and 8 bits.
    """
    check_bits("bits", bits)
    if not signed:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def check_bits(name: str, bits: object) -> None:
    """Check that `bits` is a word length that LSQ supports.

    Raises:
        ValueError: it is not a whole number from 1 to 8.
    """
    if not (is_whole(bits) and 1 <= bits <= LONGEST):
        raise ValueError(f"{name} must be a whole number of 1 to {LONGEST} bits, got {bits!r}")


def initial_step(mean_magnitude: Tensor, bits: int, *, signed: bool) -> Tensor:
    """Return LSQ's initial step, d = 2·E|x|/√Q_P; 1/√Q_P where x is all zero."""
    scale = 1 / math.sqrt(bounds(bits, signed=signed)[1])
    return torch.where(mean_magnitude > 0, 2 * mean_magnitude, torch.ones_like(mean_magnitude)) * scale


def gradient_scale(numel: int, bits: int, *, signed: bool) -> float:
    """Return LSQ's factor for the step's gradient, 1/√(numel·Q_P), if numel elements share the step."""
    return 1 / math.sqrt(max(numel, 1) * bounds(bits, signed=signed)[1])


def nearest_power_of_two(step: Tensor) -> Tensor:
    """Return 2^round(log₂ d), the power of two nearest to d in ratio, exactly."""
    mantissa, _ = torch.frexp(step)
    below = step / mantissa / 2
    return torch.where(mantissa < math.sqrt(0.5), below, 2 * below)


def rows(step: Tensor, bits: NDArray[np.int64], signed: Tensor) -> Row:
    """Return the kernels' row for formats with steps d, [F], of given word lengths and signs."""
    found = Row(*(torch.empty_like(step) for _ in Row._fields))
    for width, sign, mask in _groups(bits, signed):
        for column, values in zip(found, _row(step, width, signed=sign), strict=True):
            column.copy_(torch.where(mask, values, column))
    return found


def scaled_gradients(sums: Sequence[Tensor], numel: Tensor, bits: NDArray[np.int64], signed: Tensor) -> Tensor:
    """Return the gradients of steps d, with the gradient scale, from the kernels' first three sums, [F] each.

    Args:
        sums: the sums, float64.
        numel: how many elements have each format, float64.
        bits, signed: the formats' word lengths and signs.
    """
    found = torch.zeros_like(sums[0])
    for width, sign, mask in _groups(bits, signed):
        scale = torch.rsqrt(numel.clamp(min=1) * bounds(width, signed=sign)[1])
        found = torch.where(mask, _gradient(sums, width, signed=sign) * scale, found)
    return found


def _groups(bits: NDArray[np.int64], signed: Tensor) -> Iterator[tuple[int, bool, Tensor]]:
    """Yield each pair of word length and sign, with the mask of the formats that have it, bool [F]."""
    given = torch.from_numpy(bits).to(signed.device)
    for width in np.unique(bits).tolist():
        for sign in (True, False):
            yield width, sign, (given == width) & (signed == sign)


def _row(step: Tensor, bits: int, *, signed: bool) -> Row:
    """Return the kernels' row for formats of `bits` bits with step d; one signed bit has the levels ±d."""
    low, high = bounds(bits, signed=signed)
    if signed and bits == 1:
        halves = torch.full_like(step, 0.5)
        return Row(0.5 / step, 2 * step, -halves, halves, halves)
    whole = torch.ones_like(step)
    return Row(1 / step, step, low * whole, high * whole, 0 * whole)


def _gradient(sums: Sequence[Tensor], bits: int, *, signed: bool) -> Tensor:
    """Compute LSQ eq. 5 (without the gradient scale) from the kernels' first three sums."""
    to_step, above, below = sums
    low, high = bounds(bits, signed=signed)
    return (2 * to_step if signed and bits == 1 else to_step) + high * above + low * below


def lsq(
    x: Tensor,
    step: Tensor,
    bits: int,
    *,
    signed: bool = True,
    power_of_two: bool = False,
    scaling: str = "ste",
    delta: float = DELTA,
) -> Tensor:
    """LSQ eq. 3: d·round(clip(x/d, Q_N, Q_P)), differentiable in x (eq. 4) and d (eq. 5 times `gradient_scale`).

    One signed bit is sign(x)·d, with sign(0) = 1; in float32, values from −d·2⁻²⁴ up to 0 count as 0.

    Args:
        x: float32 values.
        step: d, positive, of a shape that broadcasts with `x`: one element per tensor, or [C, 1, …] per channel.
        bits: b, 1 to 8.
        signed: whether x has both signs.
        power_of_two: use p = 2^round(log₂ d) as the step, with the straight-through derivative p/d with respect to d.
        scaling, delta: as in `adapt.learned.quantize`.

    Raises:
        TypeError, ValueError: an argument is not a tensor, the step is not positive, or the word length, scaling or δ
            is not supported.
    """
    check_option("scaling", scaling, SCALINGS)
    check_delta(delta)
    check_tensor("x", x)
    check_tensor("step", step)
    low, high = bounds(bits, signed=signed)
    if not bool((step > 0).all() and (step < math.inf).all()):
        raise ValueError("step must be above 0 everywhere, and finite")
    factor = gradient_scale(x.numel() // max(step.numel(), 1), bits, signed=signed)
    here = step.detach()
    used = nearest_power_of_two(here) if power_of_two else here
    # Its value is the step in use; its gradient with respect to d is multiplied by the factor.
    step = used + (step - here) * (used / here * factor)
    if signed and bits == 1:
        return rounding(x, 2 * step, -step, step, torch.full_like(step, 0.5), scaling, delta)
    return rounding(x, step, low * step, high * step, torch.zeros_like(step), scaling, delta)
