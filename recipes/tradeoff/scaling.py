"""How networks are scaled, what they take, and the largest one within a budget (trade-off paper, section 3)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from adapt import perfmodel

SCALINGS = ("compound", "width")
RATIO = 1.02
"""Neighbouring scales that are tried differ by this factor."""
SMALLEST, LARGEST = -600, 300
"""Exponents of the smallest and the largest scale that are tried."""

Make = Callable[[float, float], tuple[nn.Module, Any]]
"""Takes the factors of width and depth, and returns a network and an input of one sample."""


class Footprint(NamedTuple):
    """What decides how much memory a network needs.

    Attributes:
        parameters: how many it has.
        activation: the elements of its largest activation, for one sample.
    """

    parameters: int
    activation: int

    def kilobytes(self, parameter_bits: float, activation_bits: float) -> float:
        """The paper's section 3, parameters·b_p + largest activation·b_a, in kB of 8000 bits."""
        return perfmodel.memory_footprint(*self, parameter_bits, activation_bits) / 8000


class Scaled(NamedTuple):
    """The largest network within a budget: its scale α, its factors, and what it takes."""

    scale: float
    width: float
    depth: float
    footprint: Footprint


def factors(scale: float, scaling: str) -> tuple[float, float]:
    """The paper's eq. 2: width and depth × α^(1/3), so that parameters, d·w², grow by α; or width alone × α^(1/2)."""
    if scaling == "compound":
        return scale ** (1 / 3), scale ** (1 / 3)
    return scale**0.5, 1.0


def footprint_of(model: nn.Module, example: Any) -> Footprint:
    """Count the parameters, and the elements of the largest output of a layer."""
    sizes = perfmodel.activation_sizes(model, example)
    return Footprint(sum(p.numel() for p in model.parameters()), max(sizes.values()))


def largest(make: Make, budget: float, parameter_bits: int, activation_bits: int, scaling: str) -> Scaled:
    """The paper's eq. 2: the largest α whose network fits the budget, as far as whole filters and layers allow.

    Args:
        make: makes a network.
        budget: kB of 8000 bits.
        parameter_bits, activation_bits: b_p and b_a.
        scaling: one of `SCALINGS`.

    Raises:
        ValueError: not even the smallest network fits.
    """

    def scaled(exponent: int) -> Scaled:
        scale = RATIO**exponent
        width, depth = factors(scale, scaling)
        return Scaled(scale, width, depth, footprint_of(*make(width, depth)))

    def fits(found: Scaled) -> bool:
        return found.footprint.kilobytes(parameter_bits, activation_bits) <= budget

    low, high = SMALLEST, LARGEST
    best = scaled(low)
    if not fits(best):
        needed = best.footprint.kilobytes(parameter_bits, activation_bits)
        raise ValueError(f"budget must be at least {needed:.3g} kB at {parameter_bits} bits, got {budget:g} kB")
    # Footprints never fall with the scale, so that halving finds the last one that fits.
    while high - low > 1:
        middle = (low + high) // 2
        found = scaled(middle)
        low, high, best = (middle, high, found) if fits(found) else (low, middle, best)
    return best
