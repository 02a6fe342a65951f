"""Tempo: how long a window is, how finely weights are compared, how boldly precision rises."""

import math
import operator
from collections.abc import Sequence
from statistics import fmean

from adapt.switching.divergence import checked_resolution
from adapt.switching.pushup import STRATEGIES, checked_strategy

_NEGLIGIBLE = 5e-10


def next_lookback(lookback: float, diversity: float, *, bounds: tuple[int, int], momentum: float) -> float:
    """AdaPT 3.3, lookback: γ·lb_new + (1 − γ)·lb with lb_new = clamp(⌈lb_upr/Δs⌉, lb_lwr, lb_upr).

    Where Δs is not in (0, ∞), lb_new = lb_upr. The result is kept as a float, ⌈·⌉ belongs to where it is used: the
    printed ceiling ratchets and never comes down to lb_lwr. For the same reason an average within half a billionth of
    a gradient of its target becomes the target.

    Args:
        lookback: lb, gradients per window.
        diversity: Δs of the window so far.
        bounds: (lb_lwr, lb_upr), 1 ≤ lb_lwr ≤ lb_upr.
        momentum: γ in [0, 1], the weight of the new value.

    Returns:
        The new lb, within the bounds.

    Raises:
        TypeError: the bounds are not two integers.
        ValueError: the bounds are reversed or below 1, γ is outside [0, 1], or the lookback is not a positive number.
    """
    lower, upper = _checked_bounds("bounds", bounds)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
    if not 0 < lookback < math.inf:
        raise ValueError(f"lookback must be a positive number of gradients, got {lookback}")
    target = max(math.ceil(min(upper / diversity, upper)), lower) if 0 < diversity < math.inf else upper
    average = momentum * target + (1 - momentum) * lookback
    if abs(average - target) < _NEGLIGIBLE:
        return float(target)
    return float(min(max(average, lower), upper))


def next_resolution(
    resolution: int, lookback: float, *, resolution_bounds: tuple[int, int], lookback_bounds: tuple[int, int]
) -> int:
    """AdaPT eq. 5: one bin more where ⌈lb⌉ ≥ lb_upr, one less where ⌈lb⌉ ≤ lb_lwr, clamped to [r_lwr, r_upr].

    Args:
        resolution: r, number of bins.
        lookback: lb, gradients per window.
        resolution_bounds: (r_lwr, r_upr), 1 ≤ r_lwr ≤ r_upr.
        lookback_bounds: (lb_lwr, lb_upr), 1 ≤ lb_lwr ≤ lb_upr.

    Raises:
        TypeError: the resolution is not an integer, or bounds are not two of them.
        ValueError: bounds are reversed or below 1, the resolution is below 1, or the lookback is not a positive number.
    """
    resolution = checked_resolution(resolution)
    fewest, most = _checked_bounds("resolution_bounds", resolution_bounds)
    lower, upper = _checked_bounds("lookback_bounds", lookback_bounds)
    if not 0 < lookback < math.inf:
        raise ValueError(f"lookback must be a positive number of gradients, got {lookback}")
    if math.ceil(lookback) >= upper:
        resolution += 1
    elif math.ceil(lookback) <= lower:
        resolution -= 1
    return min(max(resolution, fewest), most)


def next_strategy(strategy: str, loss: float, previous_losses: Sequence[float]) -> str:
    """AdaPT 3.3, strategy: a step bolder where the loss did not fall below its average, back to "min" where it did.

    |L_avg| ≤ |L_i|: min → mean → max, max stays. Otherwise, and where a loss is NaN, "min". With no previous losses
    nothing changes.

    Args:
        strategy: "min", "mean" or "max".
        loss: L_i, this step's loss, penalties included.
        previous_losses: the lb_avg losses before it, or as many as there are; L_avg is their mean.

    Raises:
        ValueError: the strategy is unknown.
    """
    strategy = checked_strategy(strategy)
    if len(previous_losses) == 0:
        return strategy
    if abs(fmean(previous_losses)) <= abs(loss):
        return STRATEGIES[min(STRATEGIES.index(strategy) + 1, len(STRATEGIES) - 1)]
    return STRATEGIES[0]


def _checked_bounds(name: str, bounds: tuple[int, int]) -> tuple[int, int]:
    try:
        lower, upper = bounds
        lower, upper = operator.index(lower), operator.index(upper)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be two whole numbers (lower, upper), got {bounds!r}") from None
    if not 1 <= lower <= upper:
        raise ValueError(f"{name} must be (lower, upper) with 1 ≤ lower ≤ upper, got {bounds}")
    return lower, upper
