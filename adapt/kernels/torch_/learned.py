"""The passes of quantisers with a learned step in plain torch operations: on every device, and the reference.

`adapt.kernels.learned.LearnedKernels` says what they compute.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adapt.kernels.learned import SCALINGS, Row

INVERSE_TANH = math.atanh(0.95)


class Partials(NamedTuple):
    """What an element passes back to each argument, with the shape of the values."""

    values: Tensor
    step: Tensor
    above: Tensor
    below: Tensor


# f(u) of each scaling, and whether δ·f(u) is multiplied by the gradient's sign.
_SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "ste": (torch.zeros_like, False),
    "pbgs": (torch.abs, False),
    "ewgs": (lambda u: u, True),
    "acos": (lambda u: torch.sin(math.pi * u) / 2, False),
    "tanh": (lambda u: torch.tanh(4 * u) / 2, True),
    "invtanh": (lambda u: torch.atanh(1.9 * u) / (2 * INVERSE_TANH), True),
}


def slope(u: Tensor, gradient: Tensor, scaling: str, delta: float) -> Tensor:
    """Rounding's derivative at distance u from the quantisation point, −1/2 to 1/2, for a gradient of this sign."""
    shape, signed = _SHAPES[scaling]
    bend = delta * shape(u)
    return 1 + (torch.sign(gradient) * bend if signed else bend)


def rounded(x: Tensor, row: Row) -> Tensor:
    """Q(x), without a gradient."""
    v = (x * row.inverse).clamp(row.low, row.high)
    return torch.where(row.inverse == 0, x, (torch.round(v - row.offset) + row.offset) * row.step)


def partials(gradient: Tensor, x: Tensor, row: Row, scaling: str, delta: float) -> Partials:
    """What the gradient of Q(x) passes back to x, the step, and the ends of the range, element by element."""
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


@torch.no_grad()
def forward(source: Tensor, output: Tensor, rows: Tensor, site: int) -> None:
    output.copy_(rounded(source.to(torch.float32), Row(*rows[site])))


@torch.no_grad()
def backward(
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
    g = gradient.to(torch.float32)
    back = partials(g, source.to(torch.float32), Row(*rows[site]), SCALINGS[scaling], delta)
    figures = (back.step, back.above, back.below, g.square())
    # Compiled programs keep the sums for backward, which must not see that they have moved on.
    sums.data[site] += torch.stack([figure.sum(dtype=torch.float64) for figure in figures])
    output.copy_(back.values)
