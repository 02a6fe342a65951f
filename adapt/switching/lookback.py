"""Lookback, resolution and strategy: the length of a window, push-down's number of bins, the rise of precision."""

import math
from collections.abc import Sequence
from statistics import fmean

from adapt import arguments
from adapt.switching.divergence import checked_resolution
from adapt.switching.pushup import STRATEGIES

_NEGLIGIBLE = 5e-10


def next_lookback(lookback: float, diversity: float, *, bounds: tuple[int, int], momentum: float) -> float:
    """AdaPT 3.3, lookback: γ·lb_new + (1 − γ)·lb with lb_new = clamp(⌈lb_upr/Δs⌉, lb_lwr, lb_upr).

    If Δs is not in (0, ∞), lb_new = lb_upr. The result stays a float and ⌈·⌉ is applied on use, because with the
    printed ceiling lb ratchets and never falls to lb_lwr. For the same reason, an average within half a billionth of a
    gradient of its target becomes the target.

    Args:
        lookback: lb, gradients per window.
        diversity: Δs of the window so far.
        bounds: (lb_lwr, lb_upr), 1 ≤ lb_lwr ≤ lb_upr.
        momentum: γ in [0, 1], the weight of the new value.

    Returns:
        The new lb, within the bounds.

    Raises:
        TypeError: the bounds are not two integers, or another argument is not a number.
        ValueError: the bounds are reversed or below 1, γ is outside [0, 1], or the lookback is not a positive number.
    """
    lower, upper = arguments.bounds("bounds", bounds)
    lookback, diversity = arguments.number("lookback", lookback), arguments.number("diversity", diversity)
    momentum = arguments.number("momentum", momentum)
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
    """AdaPT eq. 5: one more bin if ⌈lb⌉ ≥ lb_upr, one less if ⌈lb⌉ ≤ lb_lwr, clamped to [r_lwr, r_upr].

    Args:
        resolution: r, number of bins.
        lookback: lb, gradients per window.
        resolution_bounds: (r_lwr, r_upr), 1 ≤ r_lwr ≤ r_upr.
        lookback_bounds: (lb_lwr, lb_upr), 1 ≤ lb_lwr ≤ lb_upr.

    Raises:
        TypeError: the resolution is not an integer, bounds are not two integers, or the lookback is not a number.
        ValueError: bounds are reversed or below 1, the resolution is below 1, or the lookback is not a positive number.
    """
    resolution = checked_resolution(resolution)
    fewest, most = arguments.bounds("resolution_bounds", resolution_bounds)
    lower, upper = arguments.bounds("lookback_bounds", lookback_bounds)
    lookback = arguments.number("lookback", lookback)
    if not 0 < lookback < math.inf:
        raise ValueError(f"lookback must be a positive number of gradients, got {lookback}")
    if math.ceil(lookback) >= upper:
        resolution += 1
    elif math.ceil(lookback) <= lower:
        resolution -= 1
    return min(max(resolution, fewest), most)


def next_strategy(strategy: str, loss: float, previous_losses: Sequence[float]) -> str:
    """AdaPT 3.3, strategy: the next longer one if the loss did not fall below its average, else back to "min".

    If |L_avg| ≤ |L_i|: min → mean → max, max stays. Otherwise, or if a loss is NaN, "min". Without previous losses the
    strategy stays.

    Args:
        strategy: "min", "mean" or "max".
        loss: L_i, this step's loss including penalties.
        previous_losses: the previous lb_avg losses, or as many as there are; L_avg is their mean.

    Raises:
        TypeError: a loss is not a number.
        ValueError: the strategy is unknown.
    """
    arguments.check_option("strategy", strategy, STRATEGIES)
    loss = arguments.number("loss", loss)
    try:
        average = fmean(previous_losses) if len(previous_losses) else None
    except TypeError:
        raise TypeError(f"previous_losses must be a sequence of numbers, got {previous_losses!r}") from None
    if average is None:
        return strategy
    if abs(average) <= abs(loss):
        return STRATEGIES[min(STRATEGIES.index(strategy) + 1, len(STRATEGIES) - 1)]
    return STRATEGIES[0]
