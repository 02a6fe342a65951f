"""How large the quantised weights are: mean word length, bytes of packed words, and bytes under an entropy code."""

from collections.abc import Mapping

import torch
from torch import Tensor

import adapt


def mean_bits(word_lengths: Mapping[str, int], numel: Mapping[str, int]) -> float:
    """Σ n_l·WL_l / Σ n_l: bits per weight of the layers' words, every weight counted alike."""
    return sum(numel[name] * word for name, word in word_lengths.items()) / sum(numel[name] for name in word_lengths)


def dense_bytes(word_lengths: Mapping[str, int], numel: Mapping[str, int]) -> int:
    """Σ ⌈n_l·WL_l/8⌉: bytes of the layers' words packed without gaps, zeros included."""
    return sum(-(-numel[name] * word // 8) for name, word in word_lengths.items())


def entropy_bytes(words: Mapping[str, Tensor]) -> float:
    """Σ n_l·H_l/8 with H_l the entropy, in bits, of how often each word occurs in layer l: what an ideal entropy
    coder with one table per layer needs, the tables not counted."""
    return sum(len(layer.flatten()) * entropy(layer) / 8 for layer in words.values())


def entropy(words: Tensor) -> float:
    """−Σ p·log₂ p of the relative frequencies p of the values, in bits per value; 0 for an empty tensor."""
    if not words.numel():
        return 0.0
    counts = torch.unique(words, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0


def integer_words(weights: Tensor, precision: adapt.Precision) -> Tensor:
    """The words of quantised weights: Q(W)·2^FL, whole numbers in float64."""
    return adapt.quantize(weights, precision).double() * 2.0**precision.fraction_length
