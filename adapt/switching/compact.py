"""`AdaPT.compact()`: word lengths where a bit lowers the loss most, and ranges by least squared error.

Every equation here rests on one estimate. Rounding moves a weight by e, and to second order the loss by ½·h·e². Near a
minimum the curvature h of a weight is its Fisher information, which the mean square of its gradient follows up to a
factor that all layers share. So rounding layer l costs the loss in proportion to

    c_l(b) = ‖G_l‖² · mse_l(b)

with mse_l(b) the mean squared error of its weights in words of b bits. Both factors are hardly noisy, other than
`rounding_cost`, which sees the loss itself but averages to little once training has adapted the weights to their grid:
that one is summed over the network and decides only how many bits there are altogether.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.kernels.counting import extremes
from adapt.numerics import HIGHEST_FRACTION, LONGEST_WORD, SHORTEST_WORD, Precision, block_precision
from adapt.rounding import quantize
from adapt.switching.policy import Format, Observation

WORDS = range(SHORTEST_WORD, 17)
"""The word lengths that are considered, in bits."""

SAMPLE = 2**16
"""How many weights of a layer its squared errors are measured on; more would change nothing but the time."""

STICKINESS = 1.5
"""By which factor another format must lower a layer's squared error: a change of format is a jump of the weights that
training has to make good, so formats that are about as good must not alternate."""

MARGIN = 8.0
"""How far below the tolerance the cost must lie before a bit is given back: a bit less makes rounding errors twice as
large and, near a minimum, their cost four times, so a margin of four would let word lengths swing to and fro."""


def rounding_cost(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: Precision, *, l1: float = 0.0, l2: float = 0.0
) -> float:
    """⟨ΣG/n + α·sign(W) + β·W, Q(W) − W⟩: by how much the loss would fall, to first order, if the weights moved from
    Q(W) to W.

    G is measured at Q(W). For a loss of curvature H the difference L(Q(W)) − L(W) is this less ½·EᵀHE with
    E = Q(W) − W, so near a minimum rounding the layer costs between half of it and all of it. The loss is the
    penalised one: where a penalty holds weights against the pull of the data, G alone would never vanish.

    Args:
        sum_of_gradients: ΣG over the window, without penalties, of the weights' shape.
        gradients: n, how many there are, at least 1.
        weights: the layer's master weights.
        precision: the format in which the window ran; rounding is to nearest.
        l1, l2: the penalties' coefficients α and β.

    Returns:
        The cost in units of the loss; negative where rounding happens to help.

    Raises:
        TypeError: the precision is not a Precision, or the count not an integer.
        ValueError: there is no gradient.
    """
    precision = arguments.precision("precision", precision)
    if arguments.whole("gradients", gradients) < 1:
        raise ValueError(f"gradients must be at least 1, got {gradients}: a window has some")
    error = quantize(weights, precision).sub_(weights)
    pull = sum_of_gradients / gradients
    if l1:
        pull.add_(weights.sign(), alpha=l1)
    if l2:
        pull.add_(weights, alpha=l2)
    return float(pull.mul_(error).sum(dtype=torch.float64))


def squared_error(weights: Tensor, precision: Precision) -> float:
    """Σ(Q(W) − W)²/n: the mean squared error of rounding to nearest; 0 for an empty tensor.

    Raises:
        TypeError: weights is not a floating-point tensor, or precision not a Precision.
    """
    weights, precision = arguments.tensor("weights", weights), arguments.precision("precision", precision)
    if not weights.numel():
        return 0.0
    error = quantize(weights, precision).sub_(weights)
    return float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2 / weights.numel()


def best_ranges(weights: Tensor, words: Sequence[int] = WORDS) -> list[tuple[Precision, float]]:
    """argmin over FL of Σ(Q(W) − W)²/n, for every word length WL: the range that loses least, and what it loses.

    A range that holds every weight spends most of a short word on a few outliers: from the fraction length of
    `block_precision`, which holds them all, FL rises while the error falls. A longer word never wants fewer bits behind
    the point, so each search starts where the one for the word before ended.

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
    """Return every k-th weight in float32 or float64, at most `SAMPLE`; k is odd, so as to visit all channels."""
    step = max(-(-weights.numel() // SAMPLE), 1)
    values = weights.detach().flatten()[:: step + 1 - step % 2]
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def allocate(costs: NDArray[np.float64], numel: NDArray[np.int64], budget: float) -> NDArray[np.int64]:
    """argmin Σ c_l(b_l) with Σ n_l·b_l ≤ budget: every bit goes where it lowers the cost most, per weight.

    This is reverse water-filling: at the end one bit per weight more would lower the cost of every layer by about the
    same amount λ, whatever its size, and λ follows from the budget. From the shortest word on, each layer offers
    the lengthening by j bits with the largest (c(b) − c(b + j))/(n·j); offers are taken from the largest on, each if
    it still fits. So small layers may fill what a large one leaves.

    Args:
        costs: c_l(b) for each word length, increasing by one bit, [layers, words].
        numel: n_l, [layers].
        budget: Σ n_l·i_l may not be above it, with i_l the index of the layer's word length.

    Returns:
        The index of each layer's word length, [layers]; 0 for all where the budget does not suffice.
    """
    offers = []
    for layer, cost in enumerate(costs):
        index = 0
        while index < len(cost) - 1:
            gains = (cost[index] - cost[index + 1 :]) / np.arange(1, len(cost) - index)
            longer = int(gains.argmax())
            if not gains[longer] > 0:
                break
            offers.append((-gains[longer] / max(numel[layer], 1), layer, index, index + 1 + longer))
            index += 1 + longer
    taken, spent = np.zeros(len(costs), np.int64), 0
    for _, layer, before, after in sorted(offers):
        price = (after - before) * int(numel[layer])
        if taken[layer] == before and spent + price <= budget:
            taken[layer], spent = after, spent + price
    return taken


def next_bits(bits: float, cost: float, allowed: float) -> float:
    """A bit per weight more where rounding costs more than it may, one less where it costs clearly less.

    Args:
        bits: the present mean word length.
        cost: what rounding costs, from `rounding_cost`.
        allowed: what it may cost, above 0, in the same units.

    Returns:
        bits + 1 where cost > allowed; bits − 1 where |cost| is less than an eighth of it; bits between, and where
        the cost is NaN.

    Raises:
        TypeError: an argument is not a number.
    """
    bits, cost = arguments.number("bits", bits), arguments.number("cost", cost)
    allowed = arguments.number("allowed", allowed)
    if cost > allowed:
        return bits + 1
    return bits - 1 if abs(cost) * MARGIN < allowed else bits


class Windows(NamedTuple):
    """The windows of gradients that ended.

    Attributes:
        layers: the layers whose window ended, [ended].
        gradients: how many gradients each layer's window holds, [layers].
        sum_of_norms: Σ‖G‖ of each layer's window, [layers].
        losses: the latest losses, oldest first.
    """

    layers: NDArray[np.int64]
    gradients: NDArray[np.int64]
    sum_of_norms: NDArray[np.float64]
    losses: Sequence[float]


def switched(
    formats: tuple[Format, ...], windows: Windows, observation: Observation, bits: float | None, tolerance: float
) -> tuple[Format, ...]:
    """The formats after these windows: all layers among them share the bits that are theirs.

    Args:
        formats: the present format of each layer.
        windows: the windows that ended.
        observation: the step with which they ended.
        bits: the mean word length that all layers together are to have; None where the loss decides (`next_bits`):
            rounding the layers may cost tolerance·|loss|·Σn_l/mean(n), so much a layer of average size.
        tolerance: share of the loss, above 0.
    """
    moving, weights = windows.layers.tolist(), observation.weights
    if not moving:
        return formats
    numel = np.array([weights[layer].numel() for layer in range(len(formats))])
    words = np.array([LONGEST_WORD if form is None else form.word_length for form in formats])
    here, present = max(int(numel[moving].sum()), 1), int((numel * words)[moving].sum())
    if bits is not None:
        budget = bits * int(numel.sum()) - (int((numel * words).sum()) - present)
    elif windows.losses:
        window = int(windows.gradients[moving].max())
        allowed = tolerance * abs(fmean(windows.losses[-window:])) * here / float(numel.mean())
        cost = sum(_cost(layer, formats[layer], windows, observation) for layer in moving)
        budget = next_bits(present / here, cost, allowed) * here
    else:
        budget = present
    powers = np.square(windows.sum_of_norms[moving] / windows.gradients[moving])
    tables = [errors_by_word(sample(weights[layer]), formats[layer]) for layer in moving]
    costs = powers[:, None] * np.array([[error for _, error in table] for table in tables])
    chosen = allocate(costs, numel[moving], budget - SHORTEST_WORD * here)
    after = list(formats)
    for layer, table, index in zip(moving, tables, chosen.tolist(), strict=True):
        after[layer] = table[index][0]
    return tuple(after)


def errors_by_word(weights: Tensor, current: Format) -> list[tuple[Precision, float]]:
    """`best_ranges`, where the present format stays for its word length unless another has clearly less error."""
    table = best_ranges(weights)
    if isinstance(current, Precision) and current.word_length in WORDS:
        index = current.word_length - WORDS[0]
        error = squared_error(weights, current) / STICKINESS
        if error <= table[index][1]:
            table[index] = current, error
    return table


def _cost(layer: int, form: Format, windows: Windows, observation: Observation) -> float:
    assert isinstance(form, Precision)  # AdaPT never leaves fixed point
    return rounding_cost(
        observation.sums[layer],
        int(windows.gradients[layer]),
        observation.weights[layer],
        form,
        l1=float(observation.l1[layer]),
        l2=observation.l2,
    )
