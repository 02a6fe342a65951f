"""A literal MuPPET, as in AdaPT 2.2 and its authors' program: every gradient is kept, and nothing is optimised."""

import math
from fractions import Fraction

import numpy as np


def block_scale(values, word_length):
    """The largest s for which every value times 2^s lies within half a step of the word, in exact arithmetic."""
    upper, lower = Fraction(2) ** (word_length - 1) - 1, -(Fraction(2) ** (word_length - 1))
    highest, lowest = max(Fraction(v) for v in values), min(Fraction(v) for v in values)
    if highest == lowest == 0:
        return word_length - 1
    scale = 126
    while scale > -126 and not (
        highest * Fraction(2) ** scale <= upper + Fraction(1, 2)
        and lowest * Fraction(2) ** scale >= lower - Fraction(1, 2)
    ):
        scale -= 1
    return scale


def word_lengths(gradients, schedule=(8, 12, 14, 16), window=3, patience=2, threshold=(1.0, 1.5, 0.1)):
    """The word length after every epoch, and the layers' diversities after every window.

    Args:
        gradients: for each epoch the last mini-batch's gradient of each layer, or None where it has none.
    """
    levels = [*schedule, 32]
    level, violations, largest, words, diversities = 0, 0, None, [], []
    for epoch in range(len(gradients)):
        if levels[level] < 32 and (epoch + 1) % window == 0:
            block = gradients[epoch + 1 - window : epoch + 1]
            of_layers = []
            for layer in range(len(gradients[0])):
                own = [g[layer] for g in block if g[layer] is not None and np.isfinite(g[layer]).all()]
                above = sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in own)
                total = np.sum([np.asarray(g, np.float64) for g in own], axis=0) if own else np.zeros(1)
                below = float((total**2).sum())
                of_layers.append(above / below if below else math.inf)
            diversities.append(of_layers)
            finite = [d for d in of_layers if d != math.inf]
            if finite:
                present = sum(finite) / len(finite)
                largest = present if largest is None else max(largest, present)
                if largest / present > threshold[0] + threshold[1] * math.exp(-threshold[2] * epoch):
                    violations += 1
            if violations == patience:
                level, violations, largest = level + 1, 0, None
        words.append(levels[level])
    return words, diversities
