"""Cyclic precision training word by word: the word length of every step of a run, cycle by cycle."""

import math


def word_lengths(total_steps, cycles, lowest, highest):
    """The word length of each step: a cosine from `lowest` up to `highest` in every cycle, rounded."""
    words = []
    for step in range(total_steps):
        period = total_steps / cycles
        place = step
        while place >= period:
            place -= period
        wave = (1 - math.cos(math.pi * place / period)) / 2
        exact = lowest + (highest - lowest) * wave
        words.append(min(range(lowest, highest + 1), key=lambda bits, exact=exact: (abs(bits - exact), bits % 2)))
    return words
