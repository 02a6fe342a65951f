"""Formats that follow weights which have outgrown them, as those of layers that begin at or near zero soon are.

A weight beyond its range gets no gradient, so it stays where it is, and ranges are learned too slowly to be of help: in
pre-training they travel two octaves, where a layer that began at zero may have to grow by ten.

Learned widths are followed until they settle. LSQ's steps, which learn in every step of the training, are followed only
while they are small: at few bits a larger step makes larger gradients and so larger weights, which would in turn be
followed, until the loss overflows.
"""

import math

import torch
from torch import Tensor

SMALL = 0.25
"""How small weights begin that are followed: with a reach times √n below this, where n weights make up a channel. With
the usual initialisations, uniform up to 1/√n or wider, it is above 1."""

GROWN = 0.5
"""Where LSQ's formats are followed no longer: q₊·√n. At 1/4 slow runs fell 1 to 2 % behind; at 4 some diverged."""

LEAST = 0.0625
"""The smallest share of weights beyond its range at which a channel counts as outgrown."""


def begins_small(reach: Tensor, count: int) -> Tensor:
    """Return which channels begin so small that their formats will have to follow them: q·√n < 1/4; bool [C].

    Args:
        reach: q = |μ| + 3σ of each channel's first weights, [C].
        count: n, the weights of a channel.
    """
    return reach * math.sqrt(count) < SMALL


def has_grown(maximum: Tensor, count: int) -> Tensor:
    """Return which channels of LSQ have grown so far that they need no following: q₊·√n ≥ 1/2; bool [C].

    Args:
        maximum: q₊, [C].
        count: n, the weights of a channel.
    """
    return maximum * math.sqrt(count) >= GROWN


def outgrown(values: Tensor, maximum: Tensor, bits: Tensor) -> Tensor:
    """Return which channels have a share of at least max(2^(1−b), LEAST) of their values beyond ±q₊; bool [C].

    The two ends of a word of b bits would hold 2^(1−b) of the values if all its 2^b values occurred equally often. The
    best ranges for normally distributed values leave out less than half of that.

    Args:
        values: [C, n].
        maximum: q₊, [C].
        bits: b, [C].
    """
    share = (values.abs() > maximum[:, None]).to(maximum).mean(1)
    return share >= torch.exp2(1.0 - bits).clamp(min=LEAST)


def growth(present: Tensor, first: Tensor, is_outgrown: Tensor) -> Tensor:
    """Return the factor by which each channel's d and q₊ grow: max(2, first/present) where outgrown, 1 elsewhere; [C].

    Doubling at least makes headroom where all values of a channel are alike.

    Args:
        present: q₊, or LSQ's d, as it is.
        first: as it would be if the run began with the present weights.
    """
    return torch.where(is_outgrown, (first / present).clamp(min=2.0), 1.0)


def is_due(step: int, every: int) -> bool:
    """Return whether to look after this many steps: often at first, at powers of two, and then after every so many."""
    return step.bit_count() == 1 or step % every == 0
