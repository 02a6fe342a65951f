"""Literal twins of the passes over activations: element by element, in exact arithmetic where that matters."""

import math
from fractions import Fraction

import torch

from adapt.kernels.activation import DECAY


def straight_through(x, gradient, precision):
    """The gradient where x lies in [minimum, maximum], 0 elsewhere; NaN does not."""
    passed = [
        g if precision.minimum <= value <= precision.maximum else 0.0
        for value, g in zip(x.flatten().tolist(), gradient.flatten().tolist(), strict=True)
    ]
    return torch.tensor(passed, dtype=gradient.dtype).reshape(gradient.shape)


def next_range(before, peak):
    """The running maximum after a step whose largest magnitude was `peak`, 0 if it had no values."""
    decayed = torch.tensor(before, dtype=torch.float32) * DECAY
    return max(peak, float(decayed)) if peak > 0 else before


def fitting_fraction_length(largest, word_length):
    """The largest fraction length at which `largest` saturates by at most half a step, found by trying them all."""
    for fraction_length in range(126, -127, -1):
        step = Fraction(2) ** -fraction_length
        if Fraction(largest) <= 2 ** (word_length - 1) * step - step / 2:
            return fraction_length
    raise ValueError(f"no fraction length holds {largest}")


def largest_finite(x):
    """max|x| over the finite elements, 0 if there is none."""
    return max((abs(value) for value in x.flatten().tolist() if math.isfinite(value)), default=0.0)
