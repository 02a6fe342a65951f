"""What rounding costs the loss, how much of the gradients it explains, and how many bits follow from either."""

import math

import torch
from torch import Tensor

from adapt import arguments
from adapt.numerics import FixedPoint
from adapt.rounding import nearest

MARGIN = 8.0
"""Factor by which the cost must lie below the tolerance before a bit is given up. One bit less doubles the rounding
errors and, near a minimum, quadruples their cost, so with a margin of four word lengths would oscillate."""


def rounding_cost(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: FixedPoint, *, l1: float = 0, l2: float = 0
) -> float:
    """Return ⟨ΣG/n + α·sign(W) + β·W, Q(W) − W⟩, the first-order fall of the loss if weights moved from Q(W) to W.

    G is measured at Q(W). For a loss of curvature H the difference L(Q(W)) − L(W) is this minus ½·EᵀHE with
    E = Q(W) − W, so near a minimum rounding the layer costs between half of it and all of it. The loss includes the
    penalties: where a penalty balances the pull of the data, G alone would never vanish.

    Args:
        sum_of_gradients: ΣG over the window, without penalties, in the weights' shape.
        gradients: n, the number of gradients, at least 1.
        weights: the layer's master weights.
        precision: the layer's format during the window; rounding is to nearest. The channels of a `ChannelPrecision`
            lie along dimension 0 of the weights.
        l1, l2: the penalties' coefficients α and β.

    Returns:
        The cost in units of the loss; negative if rounding happens to help.

    Raises:
        TypeError: the precision is not a Precision, or the count not an integer.
        ValueError: there is no gradient.
    """
    return rounding_costs(sum_of_gradients, gradients, weights, precision, l1=l1, l2=l2)[0]


def largest_cost(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: FixedPoint, *, l1: float = 0, l2: float = 0
) -> float:
    """Return ‖ΣG/n + α·sign(W) + β·W‖₂·‖Q(W) − W‖₂, which bounds `rounding_cost` (Cauchy and Schwarz).

    Arguments and errors are those of `rounding_cost`.
    """
    return rounding_costs(sum_of_gradients, gradients, weights, precision, l1=l1, l2=l2)[1]


def rounding_costs(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: FixedPoint, *, l1: float = 0, l2: float = 0
) -> tuple[float, float]:
    """Return `rounding_cost` and `largest_cost`, for which the weights are quantised only once.

    Arguments and errors are those of `rounding_cost`.
    """
    precision = arguments.fixed_point("precision", precision)
    if arguments.whole("gradients", gradients) < 1:
        raise ValueError(f"gradients must be at least 1, got {gradients}: a window has some")
    error = nearest(weights, precision).sub_(weights)
    pull = sum_of_gradients / gradients
    if l1:
        pull.add_(weights.sign(), alpha=l1)
    if l2:
        pull.add_(weights, alpha=l2)
    largest = math.prod(float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in (pull, error))
    return float(pull.mul_(error).sum(dtype=torch.float64)), largest


def explained(cost: float, largest: float) -> float:
    """Return r·|r| with r = Σ⟨G_l, E_l⟩ / Σ‖G_l‖·‖E_l‖, the share of the gradients' energy that rounding explains.

    r is the mean cosine between a layer's gradients and its rounding errors. If the errors do not matter, the two are
    unrelated and r is about 1/√n by chance; if they hold training back, gradients point along them and r grows. Like
    the cost of rounding, r² quadruples with every bit less, so it replaces the cost if no loss gives that a scale.

    Args:
        cost: Σ⟨G_l, E_l⟩, the sum of `rounding_cost` over layers.
        largest: Σ‖G_l‖·‖E_l‖, the sum of `largest_cost` over the same layers.

    Returns:
        The share, −1 to 1; negative if rounding happens to help, and 0 if all gradients or all errors are 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: largest is negative.
    """
    cost, largest = arguments.number("cost", cost), arguments.number("largest", largest)
    if largest < 0:
        raise ValueError(f"largest must not be negative, got {largest}: pass a sum of largest_cost")
    mean_cosine = cost / largest if largest else 0.0
    return min(max(mean_cosine * abs(mean_cosine), -1.0), 1.0)


def next_bits(bits: float, cost: float, allowed: float) -> float:
    """Return one more bit per weight if rounding costs too much, one less if it costs clearly less than allowed.

    Args:
        bits: the present mean word length.
        cost: the cost of rounding, from `rounding_cost`, or the share that it explains, from `explained`.
        allowed: the highest acceptable cost or share, above 0, in the same units.

    Returns:
        bits + 1 if cost > allowed; bits − 1 if |cost| is less than an eighth of `allowed`; otherwise, or if the cost is
        NaN, bits.

    Raises:
        TypeError: an argument is not a number.
    """
    bits, cost = arguments.number("bits", bits), arguments.number("cost", cost)
    allowed = arguments.number("allowed", allowed)
    if cost > allowed:
        return bits + 1
    return bits - 1 if abs(cost) * MARGIN < allowed else bits
