"""How far an activation's range lies below its running maximum: a few bits are better spent on what is common.

A range that holds every value spends most of a short word on rare large ones. Clipping these, at a lower power of two,
rounds all others more finely. Samples of the values tell how many octaves lower the squared error is least.
"""

import torch
from torch import Tensor

from adapt.numerics import HIGHEST_FRACTION

OCTAVES = 6
"""The most octaves by which a range is lowered."""

LONGEST_CLIPPED = 6
"""Longer words hold every value: they are fine enough, and values outside a range cost a mask in backward."""

HYSTERESIS = 1.5
"""The factor by which another shift must lower the error, so that formats that are about equally good, in the eyes of a
small sample, do not alternate. Training starts with the whole range, in which no gradient is lost."""


def clipping_errors(samples: Tensor, rows: Tensor) -> Tensor:
    """Return e(k) = Σ(Q_k(x) − x)²/s² for k = 0 … OCTAVES, where Q_k rounds to nearest with k bits more of fraction.

    s is the step of Q_0. All formats of a site have the same word, so every bit more of fraction halves the range.

    Args:
        samples: x, finite, float32 [sites, values].
        rows: a row (2^FL, 2^−FL, low, high) of `adapt.rounding.grid` for Q_0 of each site, float32 [sites, ≥ 4]; all 0
            for values that are not rounded, whose errors are 0.

    Returns:
        The errors, float32 [sites, OCTAVES + 1].
    """
    scale, step, low, high = (column.view(-1, 1) for column in rows[:, :4].unbind(1))
    scales = (scale * (1 << torch.arange(OCTAVES + 1, device=rows.device))).clamp_(max=2.0**HIGHEST_FRACTION)
    scaled = samples[:, None] * scales[:, :, None]
    # A fifth of the time of torch.clamp with tensors.
    nearest = torch.minimum(torch.maximum(scaled.round(), low[:, None]), high[:, None])
    return nearest.sub_(scaled).square_().sum(2) / (scales * step).clamp_(min=1).square_()


def chosen_shifts(errors: Tensor, shifts: Tensor) -> Tensor:
    """Return argmin_k e(k), the smallest of several, where e(shift) > HYSTERESIS·min e; elsewhere the present shift.

    Args:
        errors: e(k), float32 [sites, OCTAVES + 1].
        shifts: the present shifts, int32 [sites].

    Returns:
        The shifts from now on, int32 [sites].
    """
    best = errors.argmin(1, keepdim=True)
    least, present = errors.gather(1, best)[:, 0], errors.gather(1, shifts.long()[:, None])[:, 0]
    return torch.where(present > HYSTERESIS * least, best[:, 0].to(shifts.dtype), shifts)
