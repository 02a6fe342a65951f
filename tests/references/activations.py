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


def sample(x, places):
    """Every k-th value in memory order, 0 where not finite; k is the smallest odd number for which there is room."""
    stride = 1
    while len(range(0, len(x), stride)) > places:
        stride += 2
    kept = [value if math.isfinite(value) else 0.0 for value in x.tolist()[::stride]]
    return kept + [0.0] * (places - len(kept))


def clipping_errors(values, word_length, fraction_length, octaves):
    """Σ(Q(x) − x)² in squared steps of the first format, for fractions of so many bits and of 1 … `octaves` more."""
    unit, errors = Fraction(2) ** -fraction_length, []
    for longer in range(octaves + 1):
        step, half = unit / 2**longer, 2 ** (word_length - 1)
        rounded = [min(max(round(Fraction(x) / step), -half), half - 1) * step for x in values]
        errors.append(sum((q - Fraction(x)) ** 2 for q, x in zip(rounded, values, strict=True)) / unit**2)
    return errors


def chosen_shift(errors, shift, hysteresis):
    """The first shift of least error, if it clearly lowers the error of the present one."""
    return errors.index(min(errors)) if errors[shift] > hysteresis * min(errors) else shift
