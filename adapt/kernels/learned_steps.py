"""The passes of quantisers with a learned step that every back end offers, and their effect on one element.

A site is a place where values are rounded. Its row of the table holds

    (inverse, step, low, high, offset):     Q(x) = step·(rint(v − offset) + offset),  v = clip(x·inverse, low, high)

with low, high and the offset in units of the step: a range of integers has offset 0, one signed bit has the levels ±1/2
and offset 1/2. A row with inverse 0 leaves values as they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from adapt.kernels import family_module

SUMS = 4
"""Number of sums that a backward pass adds to: see `LearnedKernels.backward`."""

# f(u) of each scaling, and whether δ·f(u) is multiplied by the gradient's sign.
_SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "ste": (torch.zeros_like, False),
    "pbgs": (torch.abs, False),
    "ewgs": (lambda u: u, True),
    "acos": (lambda u: torch.sin(math.pi * u) / 2, False),
    "tanh": (lambda u: torch.tanh(4 * u) / 2, True),
    "invtanh": (lambda u: torch.atanh(1.9 * u) / (2 * math.atanh(0.95)), True),
}

SCALINGS = tuple(_SHAPES)
"""The ways to scale gradients that pass back through rounding: see `adapt.learned.scaling`."""


class Row(NamedTuple):
    """One row of the table, or several: tensors that broadcast with the values."""

    inverse: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    offset: Tensor


class Partials(NamedTuple):
    """Each element's contribution to the gradient of every argument, in the shape of the values."""

    values: Tensor
    step: Tensor
    above: Tensor
    below: Tensor


def slope(u: Tensor, gradient: Tensor, scaling: str, delta: float) -> Tensor:
    """Return rounding's derivative at distance u, −1/2 to 1/2, from the quantisation point, for a gradient's sign."""
    shape, signed = _SHAPES[scaling]
    bend = delta * shape(u)
    return 1 + (torch.sign(gradient) * bend if signed else bend)


def rounded(x: Tensor, row: Row) -> Tensor:
    """Return Q(x), without a gradient."""
    v = (x * row.inverse).clamp(row.low, row.high)
    return torch.where(row.inverse == 0, x, (torch.round(v - row.offset) + row.offset) * row.step)


def partials(gradient: Tensor, x: Tensor, row: Row, scaling: str, delta: float) -> Partials:
    """Return each element's gradient of x, the step, and the ends of the range, given the gradient of Q(x)."""
    scaled = x * row.inverse
    v = scaled.clamp(row.low, row.high)
    r = torch.round(v - row.offset) + row.offset
    through = gradient * slope(v - r, gradient, scaling, delta)
    above, below = scaled > row.high, scaled < row.low
    idle = row.inverse == 0
    zero = torch.zeros_like(through)
    return Partials(
        torch.where(idle, gradient, torch.where((scaled >= row.low) & (scaled <= row.high), through, zero)),
        torch.where(idle, zero, gradient * r - through * v),
        torch.where(above & ~idle, through, zero),
        torch.where(below & ~idle, through, zero),
    )


class LearnedKernels(Protocol):
    """The passes of a back end, each over one tensor.

    The tensors of a call are dense and share shape, strides and device. They are float32, bfloat16 or float16; the
    arithmetic is float32.
    """

    def forward(self, source: Tensor, output: Tensor, rows: Tensor, site: int) -> None:
        """output ← Q(source). The output may be the source; `rows` is float32 [sites, 5]."""

    def backward(
        self,
        gradient: Tensor,
        source: Tensor,
        output: Tensor,
        rows: Tensor,
        site: int,
        sums: Tensor,
        *,
        scaling: int,
        delta: float,
    ) -> None:
        """output ← the gradient with respect to the source; sums[site] += those with respect to step and range.

        With r = rint(v − offset) + offset, u = v − r and rounding's derivative s = 1 + δ·f(u) (the scaling determines f
        and whether sign(g) is a factor), the output is g·s where low ≤ x·inverse ≤ high and 0 elsewhere. `sums` is
        float64 [sites, 4] on the device and increases by

            Σ g·r − g·s·v,    Σ g·s above the range,    Σ g·s below the range,    Σ g².

        The output may be the gradient. `scaling` is an index into `SCALINGS`, `delta` is δ.
        """


def learned_kernels(device: torch.device) -> LearnedKernels:
    """Return the passes of the back end that `adapt.kernels.backend` chooses for this device."""
    return cast(LearnedKernels, family_module("learned_steps", device))
