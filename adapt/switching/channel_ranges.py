"""A fraction length for every output channel, of least squared error. A layer's weights are [channels, elements].

The channels of a layer differ in size, and a normalisation after it makes them equally important. With one step for
all, the smaller ones are left with few of the values of a word, and the largest ones are clipped.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.numerics import (
    HIGHEST_FRACTION,
    LARGEST_SHIFT,
    LOWEST_FRACTION,
    ChannelPrecision,
    FixedPoint,
    LayerFormat,
    Precision,
)
from adapt.switching.allocation import HYSTERESIS, SAMPLE, WORDS

LEAST = 256
"""How many weights of a channel are used to measure its squared errors, at least, if it has so many."""


class ChannelRanges(NamedTuple):
    """The best fraction lengths of a layer's channels at one word length, int64 [channels], and the error of each
    channel, Σ(Q(W) − W)², float64 [channels]."""

    fraction_lengths: NDArray[np.int64]
    errors: NDArray[np.float64]


def channel_errors(weights: Tensor, word_length: int, fraction_lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Σᵢ(Q(w_ci) − w_ci)² of every channel c, rounded to nearest in ⟨WL, FL_c⟩, float64 [channels].

    Args:
        weights: [channels, elements].
        word_length: WL, at most 24 bits.
        fraction_lengths: FL_c, [channels].
    """
    half = 2.0 ** (word_length - 1)
    fractions = torch.from_numpy(fraction_lengths).to(weights.device, torch.float64)[:, None]
    steps = weights * fractions.exp2().to(weights.dtype)
    squares = steps.round().clamp_(-half, half - 1).sub_(steps).square_().sum(1, dtype=torch.float64)
    return (squares * fractions[:, 0].mul(-2).exp2()).cpu().numpy()


def best_channel_ranges(weights: Tensor, words: Sequence[int] = WORDS) -> list[ChannelRanges]:
    """Return, for every word length WL, FL_c = argmin over FL of Σᵢ(Q(w_ci) − w_ci)² for each channel c.

    Every channel is searched as `best_ranges` searches a layer. A channel of zeros, for which every format is as good,
    gets one that holds all weights of its layer: if it grows, it will resemble the others.

    Args:
        weights: a layer's master weights, finite, [channels, elements].
        words: word lengths in bits, increasing.
    """
    ends = weights.aminmax(dim=1) if weights.numel() else weights.new_zeros(2, len(weights))
    low, high = (end.double().cpu().numpy() for end in ends)
    is_zero = (low == 0) & (high == 0)
    low, high = np.where(is_zero, low.min(), low), np.where(is_zero, high.max(), high)
    found: list[ChannelRanges] = []
    for word in words:
        best = _holding(low, high, word)
        if found:
            best = np.maximum(best, found[-1].fraction_lengths)
        errors = channel_errors(weights, word, best)
        searched = np.flatnonzero(errors > 0)
        while searched.size:
            finer = best[searched] + 1
            finer_errors = channel_errors(weights[torch.from_numpy(searched).to(weights.device)], word, finer)
            better = (finer_errors < errors[searched]) & (finer <= HIGHEST_FRACTION)
            searched = searched[better]
            best[searched], errors[searched] = finer[better], finer_errors[better]
            searched = searched[errors[searched] > 0]
        if (far := best > best.min() + LARGEST_SHIFT).any():
            best[far] = best.min() + LARGEST_SHIFT
            errors = channel_errors(weights, word, best)
        found.append(ChannelRanges(best, errors))
    return found


def _holding(low: NDArray[np.float64], high: NDArray[np.float64], word_length: int) -> NDArray[np.int64]:
    """Return the fraction length of `block_precision` for every channel's extremes, int64 [channels]."""
    half = 2.0 ** (word_length - 1)
    scales = np.full(low.shape, 2**31)
    for end, extreme in ((half - 0.5, high), (half + 0.5, -low)):
        (above, exponent), (below, its_exponent) = np.frexp(end), np.frexp(extreme)
        scale = exponent - its_exponent - (above < below)
        scales = np.where(extreme > 0, np.minimum(scales, scale), scales)
    scales = np.where(scales == 2**31, word_length - 1, scales)
    return scales.clip(LOWEST_FRACTION, HIGHEST_FRACTION).astype(np.int64)


def errors_by_channel(weights: Tensor, current: LayerFormat) -> list[tuple[FixedPoint, float]]:
    """Return the best format of every word length in `WORDS`, and its mean squared error.

    In the present word length, a channel keeps its fraction length unless another has clearly less error.

    Args:
        weights: a layer's master weights, finite, [channels, elements].
        current: its present format.
    """
    table = best_channel_ranges(weights)
    if isinstance(current, FixedPoint) and current.word_length in WORDS:
        index = current.word_length - WORDS[0]
        best, errors = table[index]
        lengths = current.fraction_lengths if isinstance(current, ChannelPrecision) else (current.fraction_length,)
        present = np.resize(np.array(lengths, np.int64), best.shape)
        present_errors = channel_errors(weights, current.word_length, present) / HYSTERESIS
        kept = present_errors <= errors
        table[index] = ChannelRanges(np.where(kept, present, best), np.where(kept, present_errors, errors))
    pairs = zip(WORDS, table, strict=True)
    return [(channel_format(word, row), row.errors.sum() / max(weights.numel(), 1)) for word, row in pairs]


def channel_format(word_length: int, ranges: ChannelRanges) -> FixedPoint:
    """Return the format of a layer with these ranges; a layer of one channel has a single fraction length."""
    lengths = tuple(ranges.fraction_lengths.tolist())
    return ChannelPrecision(word_length, lengths) if len(lengths) > 1 else Precision(word_length, lengths[0])


def sampled(weights: Tensor) -> Tensor:
    """Return every k-th weight of each channel in float32 or float64: at most `SAMPLE` in all, or `LEAST` in each."""
    channels, elements = weights.shape
    step = max(elements // max(SAMPLE // channels, LEAST), 1)
    values = weights.detach()[:, :: step + 1 - step % 2]
    return values if values.dtype == torch.float64 else values.to(torch.float32)
