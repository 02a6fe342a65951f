"""Present sizes of weights and activations, and their budgets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt import user_warnings
from adapt.learned.budget import Budget, Load, beta_of, penalty
from adapt.learned.format_table import FormatTable
from adapt.perfmodel.footprint import BITS_PER_KILOBYTE


class Sizes:
    """Sizes of learned formats and their budgets, each as a pair for weights and activations.

    Args:
        formats: the formats to measure.
        weight_budget, activation_budget: the budgets, or None.
        activation_size: whether activations count by their "sum" or by their "max".
    """

    def __init__(
        self,
        formats: FormatTable,
        weight_budget: Budget | None,
        activation_budget: Budget | None,
        activation_size: str,
    ) -> None:
        self._formats, self._activation_size = formats, activation_size
        self.budgets = weight_budget, activation_budget

    def _split(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the values of the weights' formats, and those of the activations'."""
        return values[: self._formats.weights], values[self._formats.weights :]

    @property
    def loads(self) -> tuple[Load, Load]:
        """The element counts of the weights' and the activations' formats."""
        weights, activations = self._split(self._formats.numel)
        return Load("weight", weights), Load("activation", activations, self._activation_size)

    @property
    def targets(self) -> tuple[float, float]:
        """The budgets in kB; infinite if there is none."""
        weights, activations = (
            float("inf") if budget is None else load.target(budget)
            for budget, load in zip(self.budgets, self.loads, strict=True)
        )
        return weights, activations

    @property
    def kilobytes(self) -> tuple[float, float]:
        """Weights and activations in kB."""
        bits = self._split(self._formats.bits)
        weights, activations = (load.size(own) for load, own in zip(self.loads, bits, strict=True))
        return weights, activations

    @property
    def averages(self) -> tuple[float, float]:
        """The average word length of weights and of activations; NaN if there are none."""
        parts = zip(self._split(self._formats.bits), self._split(self._formats.numel), strict=True)
        weights, activations = (
            float(bits @ numel / numel.sum()) if numel.sum() else float("nan") for bits, numel in parts
        )
        return weights, activations

    def penalty(self, beta: float | None) -> float:
        """Return the two penalties of eq. 2 at the full β; None stands for the default β."""
        parts = zip(self.loads, self._split(self._formats.bits), self.targets, strict=True)
        terms = (
            penalty(load.excess(bits, target), beta_of(beta, target))
            for load, bits, target in parts
            if np.isfinite(target)
        )
        return sum(terms, start=0.0)

    def check(self, budgets: Sequence[Budget | None]) -> None:
        """Check that these budgets, of the weights or of both, can be met, and warn of one that leaves no choice.

        Raises:
            ValueError: one cannot, even with the fewest bits.
        """
        fewest, free = self._split(self._formats.lowest), self._split(~self._formats.is_pinned)
        for budget, load, lowest, chosen in zip(budgets, self.loads, fewest, free, strict=False):
            if budget is None:
                continue
            load.check(budget, lowest)
            spare = (load.target(budget) - load.size(lowest)) * BITS_PER_KILOBYTE
            free_sizes = load.numel[chosen & (load.numel > 0)]
            if free_sizes.size and spare < free_sizes.min():
                user_warnings.warn(
                    f"{load.what}_budget leaves no bits to learn: it is just what the fewest bits of all formats take. "
                    "Allow more" + (", or pass floor=1" if self._formats.floor > 1 else "")
                )
