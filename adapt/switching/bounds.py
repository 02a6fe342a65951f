"""Move the formats that a policy chose within the user's bounds of the word length."""

from torch import Tensor

from adapt.kernels.counting import extremes
from adapt.numerics import (
    HIGHEST_FRACTION,
    LONGEST_WORD,
    SHORTEST_WORD,
    BlockFloat,
    Bounds,
    ChannelPrecision,
    LayerFormat,
    Precision,
)

ALL: Bounds = (SHORTEST_WORD, LONGEST_WORD)
"""The bounds of a layer whose word length the policy alone decides."""


def within(form: LayerFormat, bounds: Bounds) -> LayerFormat:
    """Return the format if its word length lies within the bounds, otherwise one at the nearer bound.

    A longer word keeps the integer bits of the format and gets a finer step. A shorter word cannot keep both range and
    step, and might consist of nothing but the integer bits that a policy grants, so it becomes block floating point,
    whose range follows the weights. Float32 counts as 32 bits.

    Args:
        form: the format that the policy chose.
        bounds: the fewest and the most bits.
    """
    low, high = bounds
    word_length = LONGEST_WORD if form is None else form.word_length
    if word_length > high:
        return BlockFloat(high)
    if word_length >= low:
        return form
    if isinstance(form, Precision):
        return Precision(low, min(form.fraction_length + low - word_length, HIGHEST_FRACTION))
    if isinstance(form, ChannelPrecision):
        longer = (min(length + low - word_length, HIGHEST_FRACTION) for length in form.fraction_lengths)
        return ChannelPrecision(low, tuple(longer))
    return BlockFloat(low)


def fixed_point(form: LayerFormat, weights: Tensor) -> LayerFormat:
    """Return the format itself or, for block floating point, the fixed-point format that it gives these weights."""
    if not isinstance(form, BlockFloat):
        return form
    return form.precision(*(extremes(weights) if weights.numel() else (0.0, 0.0)))
