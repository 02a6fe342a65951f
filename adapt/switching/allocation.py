"""Allocate bits to the layers where they lower the loss most, with ranges of least squared error.

Rounding moves a weight by e, and so the loss by ½·h·e² to second order. Near a minimum the curvature h of a weight is
its Fisher information, which is proportional to the mean square of its gradient, with a factor that all layers share.
So rounding layer l raises the loss in proportion to

    c_l(b) = ‖G_l‖² · mse_l(b)

where mse_l(b) is the mean squared error of its weights in words of b bits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.kernels.counting import extremes
from adapt.numerics import HIGHEST_FRACTION, SHORTEST_WORD, FixedPoint, LayerFormat, Precision, block_precision
from adapt.rounding import nearest

WORDS = range(SHORTEST_WORD, 17)
"""The word lengths that are considered, in bits."""

SAMPLE = 2**16
"""How many weights of a layer are used to measure its squared errors; more would only take longer."""

HYSTERESIS = 1.5
"""The factor by which another format must lower a layer's squared error. A change of format makes the weights jump,
from which training must recover, so formats that are about equally good must not alternate."""


def squared_error(weights: Tensor, precision: FixedPoint) -> float:
    """Return Σ(Q(W) − W)²/n, the mean squared error of rounding to nearest; 0 for an empty tensor.

    The channels of a `ChannelPrecision` lie along dimension 0 of the weights.

    Raises:
        TypeError: weights is not a floating-point tensor, or precision not a Precision.
    """
    weights, precision = arguments.tensor("weights", weights), arguments.fixed_point("precision", precision)
    if not weights.numel():
        return 0.0
    error = nearest(weights, precision).sub_(weights)
    return float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2 / weights.numel()


def best_ranges(weights: Tensor, words: Sequence[int] = WORDS) -> list[tuple[Precision, float]]:
    """Return, for every word length WL, argmin over FL of Σ(Q(W) − W)²/n: the best range, and its error.

    A range that holds every weight spends most of a short word on a few outliers. So FL starts at the value of
    `block_precision`, which holds them all, and rises while the error falls. The best FL never falls as WL grows, so
    each search starts where the one for the previous word ended.

    Args:
        weights: a layer's master weights, finite.
        words: word lengths in bits, increasing.

    Returns:
        For each word length the format and its mean squared error.

    Raises:
        TypeError: weights is not a floating-point tensor.
    """
    weights = arguments.tensor("weights", weights)
    low, high = extremes(weights) if weights.numel() else (0.0, 0.0)
    formats: list[tuple[Precision, float]] = []
    for word in words:
        best = block_precision(low, high, word)
        if formats:
            best = Precision(word, max(formats[-1][0].fraction_length, best.fraction_length))
        error = squared_error(weights, best)
        while error > 0 and best.fraction_length < HIGHEST_FRACTION:
            finer = Precision(word, best.fraction_length + 1)
            error_of_finer = squared_error(weights, finer)
            if error_of_finer >= error:
                break
            best, error = finer, error_of_finer
        formats.append((best, error))
    return formats


def sample(weights: Tensor) -> Tensor:
    """Return every k-th weight in float32 or float64, at most `SAMPLE`; k is odd, in order to visit all channels."""
    step = max(-(-weights.numel() // SAMPLE), 1)
    values = weights.detach().flatten()[:: step + 1 - step % 2]
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def allocate(costs: NDArray[np.float64], prices: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    """Return argmin Σ c_l(i_l) with Σ p_l(i_l) ≤ budget: every bit goes where it lowers the cost most.

    This is reverse water-filling: in the end, one more bit would lower the cost of every layer by about the same amount
    λ, whatever its size, and λ follows from the budget. Starting at the cheapest format, each layer offers the step
    i → j with the largest (c(i) − c(j))/(p(j) − p(i)). Offers are accepted from the largest down, if they still fit, so
    small layers may use what a large one leaves.

    Args:
        costs: c_l(i), the cost of each format in terms of the loss, [layers, formats].
        prices: p_l(i), the bits that all weights of the layer take in each format, [layers, formats]; n_l·WL if words
            are counted.
        budget: the upper bound of Σ p_l(i_l), in bits.

    Returns:
        The index of each layer's format, [layers]; 0 for all if the budget is too small.
    """
    offers = []
    prices = np.maximum.accumulate(prices, axis=1)  # measured entropies may fall slightly for a finer step
    for layer, (cost, price) in enumerate(zip(costs, prices, strict=True)):
        index = 0
        while index < len(cost) - 1:
            saved, paid = cost[index] - cost[index + 1 :], price[index + 1 :] - price[index]
            gains = np.divide(saved, paid, out=np.where(saved > 0, np.inf, 0.0), where=paid > 0)
            better = int(gains.argmax())
            if not gains[better] > 0:
                break
            offers.append((-gains[better], layer, index, index + 1 + better))
            index += 1 + better
    taken, spent = np.zeros(len(costs), np.int64), float(prices[:, 0].sum())
    for _, layer, before, after in sorted(offers):
        paid = float(prices[layer, after] - prices[layer, before])
        if taken[layer] == before and spent + paid <= budget:
            taken[layer], spent = after, spent + paid
    return taken


def errors_by_word(weights: Tensor, current: LayerFormat) -> list[tuple[Precision, float]]:
    """Return `best_ranges`, but keep the present format for its word length unless another has clearly less error."""
    table = best_ranges(weights)
    if isinstance(current, Precision) and current.word_length in WORDS:
        index = current.word_length - WORDS[0]
        error = squared_error(weights, current) / HYSTERESIS
        if error <= table[index][1]:
            table[index] = current, error
    return table
