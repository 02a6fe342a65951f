"""Gradient diversity: how much the gradients of a window disagree."""

import math

from adapt import arguments


def diversity(sum_of_norms: float, norm_of_sum: float) -> float:
    """AdaPT eq. 3: Δs = Σ‖G_k‖ / ‖ΣG_k‖ over the gradients since the layer's last switch.

    Args:
        sum_of_norms: Σ‖G_k‖₂, the running sum of the gradients' norms.
        norm_of_sum: ‖ΣG_k‖₂, the norm of the running sum of the gradients.

    Returns:
        Δs ≥ 1, by the triangle inequality (a quotient that rounding pushes below 1 becomes 1); ∞ if ‖ΣG‖ is 0 or
        anything is not finite.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative, which a norm cannot be.
    """
    sum_of_norms = arguments.number("sum_of_norms", sum_of_norms)
    norm_of_sum = arguments.number("norm_of_sum", norm_of_sum)
    for name, value in (("sum_of_norms", sum_of_norms), ("norm_of_sum", norm_of_sum)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}: pass norms of gradients")
    if norm_of_sum == 0 or not (math.isfinite(sum_of_norms) and math.isfinite(norm_of_sum)):
        return math.inf
    return max(1.0, sum_of_norms / norm_of_sum)


def log_diversity(diversity: float) -> float:
    """AdaPT eq. 3, second line: the natural logarithm of Δs, or 1 if Δs is not in (0, ∞)."""
    diversity = arguments.number("diversity", diversity)
    return math.log(diversity) if 0 < diversity < math.inf else 1.0
