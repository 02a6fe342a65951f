"""The formats that a layer may get under `AdaPT.compact()`, with the error and the size of each."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.numerics import LONGEST_WORD, Bounds, FixedPoint, LayerFormat, Precision
from adapt.switching.allocation import WORDS, errors_by_word, sample, squared_error
from adapt.switching.bounds import fixed_point, within
from adapt.switching.channel_ranges import errors_by_channel, sampled
from adapt.switching.entropy import code_length, errors_by_step

Count = Literal["words", "entropy"]
"""What a budget of bits counts: words as stored by hardware, or their size after entropy coding."""

Choice = tuple[FixedPoint, float, float]
"""A format, the mean squared error of a layer's weights in it, and the bits per weight."""


def bits_taken(weights: Tensor, form: LayerFormat, count: Count) -> float:
    """Return the bits per weight in the present format."""
    if form is None:
        return LONGEST_WORD
    assert isinstance(form, FixedPoint)  # AdaPT never leaves fixed point
    # Words longer than the policy's own choices have too many values to count.
    is_coded = count == "entropy" and form.word_length <= WORDS[-1] + 1
    return code_length(sample(weights), form.widest) if is_coded else form.word_length


def choices(weights: Tensor, form: LayerFormat, count: Count, bounds: Bounds, *, channels: bool) -> list[Choice]:
    """Return the formats that a layer may get, cheapest first.

    Args:
        weights: the layer's master weights.
        form: its present format.
        count: what the budget counts.
        bounds: the fewest and the most bits of its word.
        channels: whether every output channel gets its own fraction length; then weights are [channels, elements].
    """
    rows = errors_by_step(weights) if count == "entropy" else _by_word(weights, form, channels=channels)
    allowed = [row for row in rows if bounds[0] <= row[0].word_length <= bounds[1]]
    if allowed:
        return allowed
    # The bounds allow only fewer bits, or only more, than any row has.
    nearest = rows[0 if rows[0][0].word_length > bounds[1] else -1][0]
    only = fixed_point(within(nearest, bounds), weights)
    assert isinstance(only, FixedPoint)
    some = sampled(weights) if channels else sample(weights)
    return [(only, squared_error(some, only), bits_taken(weights, only, count))]


def _by_word(weights: Tensor, form: LayerFormat, *, channels: bool) -> list[Choice]:
    errors = errors_by_channel(sampled(weights), form) if channels else errors_by_word(sample(weights), form)
    return [(found, error, found.word_length) for found, error in errors]


def present_step(found: Sequence[Choice], form: LayerFormat) -> int:
    """Return the index of the choice with the layer's present step; −1 if there is none."""
    steps = [choice[0].fraction_length for choice in found]
    return steps.index(form.fraction_length) if isinstance(form, Precision) and form.fraction_length in steps else -1


def padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Stack the rows into an array; short ones repeat their last value, which is never better or cheaper."""
    longest = max(map(len, rows))
    return np.array([[*row, *[row[-1]] * (longest - len(row))] for row in rows], np.float64)
