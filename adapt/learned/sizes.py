"""Present sizes of weights and activations, and their budgets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapt.learned.budget import Budget, Load, beta_of, penalty
from adapt.learned.format_table import FormatTable


class Sizes:
    """Sizes of learned formats and their budgets, each as a pair for weights and activations.

    Args:
        formats: the formats to measure.
        weight_budget, activation_budget: the budgets, or None.
        activation_size: whether activations count by their "sum" or by their "max".
    """

    def __init__(
        self, formats: FormatTable, weight_budget: Budget | None, activation_budget: Budget | None, activation_size: str
    ) -> None:
        self._formats, self._activation_size = formats, activation_size
        self.budgets = weight_budget, activation_budget

    @property
    def loads(self) -> tuple[Load, Load]:
        """The element counts of the weights' and the activations' formats."""
        numel, first = self._formats.numel, self._formats.weights
        return Load("weight", numel[:first]), Load("activation", numel[first:], self._activation_size)

    @property
    def _bits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The word lengths of the weights' and of the activations' formats."""
        bits, first = self._formats.bits, self._formats.weights
        return bits[:first], bits[first:]

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
        weights, activations = self.loads
        bits = self._bits
        return weights.size(bits[0]), activations.size(bits[1])

    @property
    def averages(self) -> tuple[float, float]:
        """The average word length of weights and of activations; NaN if there are none."""
        bits, numel, first = self._formats.bits, self._formats.numel, self._formats.weights
        weights, activations = (
            float(bits[part] @ numel[part] / numel[part].sum()) if numel[part].sum() else float("nan")
            for part in (slice(0, first), slice(first, None))
        )
        return weights, activations

    def penalty(self, beta: float | None) -> float:
        """Return the two penalties of eq. 2 at the full β; None stands for the default β."""
        return sum(
            (
                penalty(load.excess(bits, target), beta_of(beta, target))
                for load, bits, target in zip(self.loads, self._bits, self.targets, strict=True)
                if np.isfinite(target)
            ),
            start=0.0,
        )

    def check(self, budgets: Sequence[Budget | None]) -> None:
        """Check that these budgets, of the weights or of both, can be met.

        Raises:
            ValueError: one cannot, even with the fewest bits.
        """
        lowest, first = self._formats.lowest, self._formats.weights
        for budget, load, fewest in zip(budgets, self.loads, (lowest[:first], lowest[first:]), strict=False):
            if budget is not None:
                load.check(budget, fewest)
