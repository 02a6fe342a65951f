"""Where AdaPT wastes no bits: precision that the loss asks for, integer bits that pay (`AdaPT.compact()`)."""

import math

import torch
from torch import Tensor

from adapt import arguments
from adapt.numerics import HIGHEST_FRACTION, LONGEST_WORD, SHORTEST_WORD, Precision
from adapt.rounding import quantize

LOWERING_MARGIN = 8.0
"""How far below the tolerance the cost must lie before a bit is given back: a bit less makes rounding errors twice as
large and, near a minimum, their cost four times, so a margin of four would let a format swing to and fro."""


def rounding_cost(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: Precision, *, l1: float = 0.0, l2: float = 0.0
) -> float:
    """⟨ΣG/n + α·sign(W) + β·W, Q(W) − W⟩: by how much the loss would fall, to first order, if the weights moved from
    Q(W) to W.

    G is measured at Q(W). For a loss of curvature H the difference L(Q(W)) − L(W) is this less ½·EᵀHE with
    E = Q(W) − W, so near a minimum between half of it and all of it is what rounding the layer costs. The loss is the
    penalised one: where a penalty holds weights against the pull of the data, G alone would never vanish.

    Args:
        sum_of_gradients: ΣG over the window, without penalties, of the weights' shape.
        gradients: n, how many there are, at least 1.
        weights: the layer's master weights.
        precision: the format in which the window ran; rounding is to nearest.
        l1, l2: the penalties' coefficients α and β.

    Returns:
        The cost in units of the loss. Negative where rounding happens to help.

    Raises:
        TypeError: the precision is no Precision, or the count no integer.
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


def push_up_by_loss(lowest: Precision, current: Precision, cost: float, allowed: float) -> int:
    """The fraction length that the loss asks for: a bit more where rounding costs too much, seldom a bit less.

    Every change of format is a jump of the weights that training has to make good, so what the noise of one window
    says must not move it: between FL_min and FL_min + 1, and where the cost is not clearly small, FL stays.

    Args:
        lowest: ⟨WL_min, FL_min⟩ from PushDown, the floor.
        current: the layer's format during the window.
        cost: what rounding cost, from `rounding_cost`.
        allowed: what it may cost, above 0, in the same units.

    Returns:
        FL + 1 where cost > allowed; FL − 1 where |cost| is far below and FL at least two bits above the floor; FL
        between; at least FL_min.

    Raises:
        TypeError: a format is no Precision, or a cost no number.
    """
    lowest, current = arguments.precision("lowest", lowest), arguments.precision("current", current)
    cost, allowed = arguments.number("cost", cost), arguments.number("allowed", allowed)
    fraction_length = current.fraction_length
    if cost > allowed:
        fraction_length += 1
    elif abs(cost) * LOWERING_MARGIN < allowed and fraction_length > lowest.fraction_length + 1:
        fraction_length -= 1
    return min(max(fraction_length, lowest.fraction_length), HIGHEST_FRACTION)


def fewest_integer_bits(weights: Tensor, fraction_length: int) -> int:
    """The fewest integer bits IL, sign included, for which Σ max(|w| − (2^(IL−1) − 2^−FL), 0)² ≤ n·4^−FL/12.

    On the right is the squared error of rounding n weights to a grid of step 2^−FL: bits that only a few outliers would
    use are not worth more. On the left is what saturation adds, with |w| measured against the format's maximum on both
    sides: as the range reaches one step further below zero, negative weights count up to a step too strictly.

    Args:
        weights: a layer's master weights, finite.
        fraction_length: FL in bits.

    Returns:
        IL, such that IL + FL lies between 2 and 32 bits.

    Raises:
        TypeError: weights is not a floating-point tensor, or the fraction length no integer.
    """
    fraction_length = arguments.whole("fraction_length", fraction_length, "bits")
    step = math.ldexp(1.0, -fraction_length)
    magnitudes = arguments.tensor("weights", weights).detach().abs()
    largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
    shortest, longest = SHORTEST_WORD - fraction_length, LONGEST_WORD - fraction_length
    # One bit more than holds the largest: the top of a range lies a step below its power of two.
    needed = min(max(math.frexp(largest)[1] + 2, shortest), longest)
    worthwhile = magnitudes.numel() * step * step / 12
    while needed > shortest:
        top = math.ldexp(1.0, needed - 2) - step
        excess = (magnitudes - top).clamp_min_(0)
        if float(torch.linalg.vector_norm(excess, dtype=torch.float64)) ** 2 > worthwhile:
            break
        needed -= 1
    return needed
