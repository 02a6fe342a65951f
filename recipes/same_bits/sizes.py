"""The size of quantised weights: mean word length, bytes of packed words, and bytes under an entropy code."""

from collections.abc import Mapping

import torch
from torch import Tensor

import adapt


def mean_bits(word_lengths: Mapping[str, int], numel: Mapping[str, int]) -> float:
    """Return Σ n_l·WL_l / Σ n_l, the mean word length of a weight in bits."""
    return sum(numel[name] * word for name, word in word_lengths.items()) / sum(numel[name] for name in word_lengths)


def dense_bytes(word_lengths: Mapping[str, int], numel: Mapping[str, int]) -> int:
    """Return Σ ⌈n_l·WL_l/8⌉, the bytes of the layers' words packed without gaps, zeros included."""
    return sum(-(-numel[name] * word // 8) for name, word in word_lengths.items())


def entropy_bytes(words: Mapping[str, Tensor]) -> float:
    """Return Σ n_l·H_l/8, H_l being the entropy in bits of the words of layer l: the bytes that an ideal entropy coder
    with a table for each layer needs, without the tables."""
    return sum(layer.numel() * entropy(layer) / 8 for layer in words.values())


def entropy(words: Tensor) -> float:
    """Return −Σ p·log₂ p of the values' relative frequencies p, in bits per value; 0 for an empty tensor."""
    if not words.numel():
        return 0.0
    counts = torch.unique(words, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0


def integer_words(weights: Tensor, precision: adapt.Precision) -> Tensor:
    """Return the words of the quantised weights, Q(W)·2^FL: whole numbers in float64."""
    return adapt.quantize(weights, precision).double() * 2.0**precision.fraction_length
