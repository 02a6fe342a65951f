"""Steps for weights that an entropy coder will pack: only the step affects their size, so nothing is clipped.

A word stored by hardware takes the same bits for every value; a coded word takes more the rarer its value is. Large
weights are rare and add almost nothing to the mean, so clipping them for a finer step, which pays off in short words,
gains nothing here. For steps d_l much smaller than the weights, rounding costs ‖G_l‖²·d_l²/12 and a weight takes
h_l − log₂ d_l bits, where h_l is the differential entropy. Minimising Σ‖G_l‖²·d_l²/12 at a given
Σ n_l·(h_l − log₂ d_l) makes

    ‖G_l‖²·d_l²/n_l equal in all layers:

the step is inversely proportional to the root mean square of the gradient, and the spread of the weights does not
matter. Coarse steps round most weights to zero, where neither approximation holds, so the policy measures errors and
entropies, and `adapt.switching.allocation.allocate` finds the minimum among steps that are powers of two.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.kernels.counting import extremes
from adapt.numerics import Precision, block_precision
from adapt.switching.allocation import HYSTERESIS, WORDS, sample, squared_error

SLACK = 0.02
"""The share of the budget by which the present steps may miss it and still stay."""

NOISE = 0.5
"""The largest share of its weights' power that a layer may lose. Costs are second-order estimates without a limit: by
them, a large layer whose gradients are small for a while could be rounded to zero, which no network survives."""


def code_length(weights: Tensor, precision: Precision) -> float:
    """Return H + (K − 1)/2·log₂(n)/n, the bits per weight under an ideal entropy code, including the code's table.

    H = −Σ p·log₂ p is the entropy of the K words that occur. Each of their K − 1 free frequencies takes ½·log₂ n bits
    to describe (Rissanen's minimum description length). Without this term a small layer, most of whose words occur
    once, would seem to get finer steps for free.

    Args:
        weights: n weights of any shape; they are rounded to nearest.
        precision: the format, of at most 17 bits.
    """
    n = weights.numel()
    if not n:
        return 0.0
    half = 2 ** (precision.word_length - 1)
    # A layer that has diverged keeps its format, but its bits are counted, and NaN has no word.
    words = (
        (weights.flatten().double() * 2.0**precision.fraction_length).nan_to_num().round().clamp(-half, half - 1).long()
    )
    counts = torch.bincount(words + half)
    shares = counts[counts > 0].double() / n
    return float(-(shares * shares.log2()).sum()) + (len(shares) - 1) / 2 * math.log2(n) / n


def errors_by_step(weights: Tensor) -> list[tuple[Precision, float, float]]:
    """Return the formats that clip no weight, from the coarsest step to the finest, with their errors and sizes.

    Steps that would lose more than `NOISE` of the weights' power are left out.

    Args:
        weights: a layer's master weights, finite.

    Returns:
        For each word length, the step of block floating point in a word one bit longer, its mean squared error and its
        `code_length`.
    """
    low, high = extremes(weights) if weights.numel() else (0.0, 0.0)
    some = sample(weights)
    tight = [block_precision(low, high, word) for word in WORDS]
    # An unused bit above the largest weight costs nothing after entropy coding, and weights may grow until the next
    # window ends.
    formats = [Precision(form.word_length + 1, form.fraction_length) for form in tight]
    rows = [(form, squared_error(some, form), code_length(some, form)) for form in formats]
    power = float(some.double().square().mean()) if some.numel() else 0.0
    return [row for row in rows if row[1] <= NOISE * power] or rows[-1:]


def steady(
    costs: NDArray[np.float64],
    prices: NDArray[np.float64],
    present: NDArray[np.int64],
    chosen: NDArray[np.int64],
    budget: float,
) -> NDArray[np.int64]:
    """Return the present steps if they meet the budget and the chosen ones cost little less; else the chosen ones.

    Weights gather around the values of their grid, so the entropy of every layer drifts during training. Following
    every drift would change some layers' steps by a factor of two in every window, even in the last, after which there
    is no time to recover. Word lengths do not drift, and for them the same rule gained nothing.

    Args:
        costs, prices, budget: as in `allocate`.
        present: index of each layer's present step, [layers]; −1 if it is not among the choices.
        chosen: the indices that `allocate` chose, [layers].
    """
    layers = np.arange(len(costs))
    keeps = (
        (present >= 0).all()
        and abs(prices[layers, present].sum() - budget) <= SLACK * budget
        and costs[layers, present].sum() <= HYSTERESIS * costs[layers, chosen].sum()
    )
    return present if keeps else chosen


def first_step(weights: Tensor, bits: float) -> Precision:
    """Return the finest format that clips no weight and takes at most `bits` per weight, or the coarsest."""
    coarsest, *finer = errors_by_step(weights)
    return [coarsest[0], *(form for form, _, length in finer if length <= bits)][-1]
