"""The size of quantised weights: mean word length, bytes of packed words, and bytes under an entropy code."""

from collections.abc import Iterable

import torch
from torch import Tensor

from adapt import Format


def word_lengths(form: Format, weights: Tensor) -> Tensor:
    """Return the word length of each channel, or of the layer, repeated so that its mean is that of the weights."""
    lengths = torch.from_numpy(form.word_length.copy()).flatten()
    return lengths.repeat_interleave(weights.numel() // max(lengths.numel(), 1))


def mean_bits(lengths: Iterable[Tensor]) -> float:
    """Return Σ n_l·WL_l / Σ n_l, the mean word length of a weight in bits.

    Args:
        lengths: the word length of every weight, by layer.
    """
    return float(torch.cat(list(lengths)).double().mean())


def dense_bytes(lengths: Iterable[Tensor]) -> int:
    """Return Σ ⌈n_l·WL_l/8⌉, the bytes of the layers' words packed without gaps, zeros included.

    Args:
        lengths: the word length of every weight, by layer.
    """
    return sum(-(-int(layer.sum()) // 8) for layer in lengths)


def step_bytes(form: Format) -> int:
    """Return the bytes that the steps of a layer's channels take: one for a shift, four for a float32 number each.

    The single step of a layer without channels is not counted.
    """
    if form.axis is None:
        return 0
    return form.step.size * (1 if form.fraction_length is not None else 4)


def entropy_bytes(words: Iterable[Tensor]) -> float:
    """Return Σ n_l·H_l/8, H_l being the entropy in bits of the words of layer l: the bytes that an ideal entropy coder
    with a table for each layer needs, without the tables."""
    return sum(layer.numel() * entropy(layer) / 8 for layer in words)


def entropy(words: Tensor) -> float:
    """Return −Σ p·log₂ p of the values' relative frequencies p, in bits per value; 0 for an empty tensor."""
    if not words.numel():
        return 0.0
    counts = torch.unique(words, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0
