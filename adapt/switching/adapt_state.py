"""The state of AdaPT."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapt.arguments import check_option
from adapt.numerics import FixedPoint
from adapt.switching.policy import State
from adapt.switching.pushup import STRATEGIES


@dataclass(frozen=True)
class AdaPTState(State):
    """The state of AdaPT between steps: Q of algorithm 1, without the gradients.

    Attributes:
        lookback: lb of each layer, kept as a float, [layers].
        resolution: r of each layer, [layers].
        sum_of_norms: Σ‖G‖ of each layer's window, [layers].
        diversity: Δs of each layer after its latest gradient, [layers].
        divergence: bits of divergence that each layer's latest push-down gave up; NaN before the first, [layers].
        rounding_cost: what rounding each layer cost the loss in its latest window under `AdaPT.compact()`; NaN before
            its first one ended, and under other rules, [layers].
        strategy: "min", "mean" or "max", for the whole network.
        losses: the latest losses, oldest first, at most as many as the longest lookback.
    """

    lookback: NDArray[np.float64]
    resolution: NDArray[np.int64]
    sum_of_norms: NDArray[np.float64]
    diversity: NDArray[np.float64]
    divergence: NDArray[np.float64]
    strategy: str
    losses: tuple[float, ...]
    rounding_cost: NDArray[np.float64] = math.nan  # type: ignore[assignment]  # of every layer, in states that lack it

    def check(self) -> None:
        check_option("strategy", self.strategy, STRATEGIES)
        for name, lowest in (("gradients", 0), ("lookback", 1), ("resolution", 1), ("sum_of_norms", 0)):
            values = getattr(self, name)
            if not (np.isfinite(values) & (values >= lowest)).all():
                raise ValueError(f"{name} of AdaPT's state must be finite numbers ≥ {lowest}, got {values}")
        if not (self.diversity >= 1).all() or (self.divergence < 0).any():
            raise ValueError(
                f"diversity and divergence of AdaPT's state must be at least 1 and 0, got {self.diversity} and "
                f"{self.divergence}"
            )
        if not all(isinstance(form, FixedPoint) for form in self.formats):
            raise ValueError("formats must be fixed point for every layer: AdaPT never leaves it for float32")
