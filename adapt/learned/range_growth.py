"""Formats that follow weights which have outgrown them. This soon happens in layers that begin at or near zero.

A weight beyond its range gets no gradient, so it stays where it is, and ranges learn too slowly to help: they travel
two octaves in pre-training, while a layer that begins at zero may have to grow by ten.

Under learned widths, formats follow the weights until the widths are settled. LSQ's steps, which learn in every step of
the training, follow only while they are small: at few bits a larger step causes larger gradients and so larger weights,
which the step would follow in turn, until the loss overflows.
"""

import math

import torch
from torch import Tensor

SMALL = 0.25
"""Formats follow weights that begin with reach·√n below this, where n is the number of weights in a channel. The usual
initialisations, uniform up to 1/√n or wider, are above 1."""

GROWN = 0.5
"""LSQ's formats stop following at this q₊·√n. At 1/4 slow runs fell 1 to 2 % behind; at 4 some diverged."""

LEAST = 0.0625
"""The smallest share of weights beyond its range at which a channel counts as outgrown."""


def begins_small(reach: Tensor, count: int) -> Tensor:
    """Return which channels begin so small that their formats must follow them: q·√n < 1/4; bool [C].

    Args:
        reach: q = |μ| + 3σ of each channel's first weights, [C].
        count: n, the number of weights in a channel.
    """
    return reach * math.sqrt(count) < SMALL


def has_grown(maximum: Tensor, count: int | Tensor) -> Tensor:
    """Return which channels have grown enough for LSQ's formats to stop following them: q₊·√n ≥ 1/2; bool [C].

    Args:
        maximum: q₊, [C].
        count: n, the number of weights in a channel, or in each, [C].
    """
    return maximum * count**0.5 >= GROWN


def outgrown(values: Tensor, maximum: Tensor, bits: Tensor) -> Tensor:
    """Return which channels have a share of at least max(2^(1−b), LEAST) of their values beyond ±q₊; bool [C].

    The two extreme values of a b-bit word would hold 2^(1−b) of the weights if all its 2^b values were equally
    frequent. The best ranges for normally distributed weights cut off less than half of that.

    Args:
        values: [C, n].
        maximum: q₊, [C].
        bits: b, [C].
    """
    share = (values.abs() > maximum[:, None]).to(maximum).mean(1)
    return share >= torch.exp2(1.0 - bits).clamp(min=LEAST)


def growth(present: Tensor, first: Tensor, is_outgrown: Tensor) -> Tensor:
    """Return the factor by which each channel's d and q₊ grow: max(2, first/present) if outgrown, else 1; [C].

    At least doubling them leaves headroom even if all values of a channel are alike.

    Args:
        present: the present q₊, or LSQ's d, [C].
        first: what it would be if the run began with the present weights, [C].
        is_outgrown: which channels are outgrown, bool [C].
    """
    return torch.where(is_outgrown, (first / present).clamp(min=2.0), 1.0)


def is_due(step: int, every: int) -> bool:
    """Return whether to check the weights after this step: at powers of two, and at multiples of `every`."""
    return step.bit_count() == 1 or step % every == 0
