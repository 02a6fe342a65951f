"""What rounding costs the loss, how much of the gradients it explains, and how many bits follow from either."""

import math

import torch
from torch import Tensor

from adapt import arguments
from adapt.numerics import Precision
from adapt.rounding import quantize

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
    pull, error = _pull_and_error(sum_of_gradients, gradients, weights, precision, l1, l2)
    return float(pull.mul_(error).sum(dtype=torch.float64))


def largest_cost(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: Precision, *, l1: float = 0.0, l2: float = 0.0
) -> float:
    """‖ΣG/n + α·sign(W) + β·W‖₂ · ‖Q(W) − W‖₂: the most that `rounding_cost` can be, by Cauchy and Schwarz.

    Arguments and errors are those of `rounding_cost`.
    """
    pull, error = _pull_and_error(sum_of_gradients, gradients, weights, precision, l1, l2)
    return math.prod(float(torch.linalg.vector_norm(vector, dtype=torch.float64)) for vector in (pull, error))


def _pull_and_error(
    sum_of_gradients: Tensor, gradients: int, weights: Tensor, precision: Precision, l1: float, l2: float
) -> tuple[Tensor, Tensor]:
    """Return ΣG/n + α·sign(W) + β·W and Q(W) − W."""
    precision = arguments.precision("precision", precision)
    if arguments.whole("gradients", gradients) < 1:
        raise ValueError(f"gradients must be at least 1, got {gradients}: a window has some")
    error = quantize(weights, precision).sub_(weights)
    pull = sum_of_gradients / gradients
    if l1:
        pull.add_(weights.sign(), alpha=l1)
    if l2:
        pull.add_(weights, alpha=l2)
    return pull, error


def explained(cost: float, largest: float) -> float:
    """r·|r| with r = Σ⟨G_l, E_l⟩ / Σ‖G_l‖·‖E_l‖: the share of the gradients' energy that rounding errors explain.

    r is the mean cosine between what pulls on the weights of a layer and their rounding errors. Where the errors do
    not matter the two have nothing in common, and r is about 1/√n by chance; where they hold training back, the
    gradients point along them and r rises. As their cost, r² quadruples with every bit less. So it takes the place of
    the cost where no loss gives the cost a scale.

    Args:
        cost: Σ⟨G_l, E_l⟩, the sum of `rounding_cost` over layers.
        largest: Σ‖G_l‖·‖E_l‖, the sum of `largest_cost` over the same layers.

    Returns:
        The share, −1 to 1; negative where rounding happens to help, and 0 where there is nothing to explain.

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
    """A bit per weight more where rounding costs more than it may, one less where it costs clearly less.

    Args:
        bits: the present mean word length.
        cost: what rounding costs, from `rounding_cost`, or how much it explains, from `explained`.
        allowed: what it may cost or explain, above 0, in the same units.

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
