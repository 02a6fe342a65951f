"""How large weights and activations are now, and how large they may be."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapt.learned.budget import Budget, Load, penalty
from adapt.learned.formats import Formats
from adapt.learned.plan import LearnedWidths, Plan
from adapt.learned.rules import beta_of


class Sizes:
    """Sizes of formats that move, against their budgets: pairs of the weights' and the activations'.

    Args:
        plan: the budgets, β, and how activations count. Its phases do not matter here.
        formats: what is measured.
    """

    def __init__(self, plan: Plan, formats: Formats) -> None:
        self._plan, self._formats = plan, formats

    @property
    def loads(self) -> tuple[Load, Load]:
        """What the weights' and the activations' formats hold."""
        numel, first = self._formats.numel, self._formats.weights
        return Load("weight", numel[:first]), Load("activation", numel[first:], self._plan.activation_size)

    @property
    def _bits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The word lengths of the weights' and of the activations' formats."""
        bits, first = self._formats.bits, self._formats.weights
        return bits[:first], bits[first:]

    @property
    def budgets(self) -> tuple[Budget | None, Budget | None]:
        """The budgets of weights and of activations."""
        return self._plan.weight_budget, self._plan.activation_budget

    @property
    def targets(self) -> tuple[float, float]:
        """The budgets in kB, infinite where there is none."""
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
        """The word length of the average weight and of the average activation; NaN where there is none."""
        bits, numel, first = self._formats.bits, self._formats.numel, self._formats.weights
        weights, activations = (
            float(bits[part] @ numel[part] / numel[part].sum()) if numel[part].sum() else float("nan")
            for part in (slice(0, first), slice(first, None))
        )
        return weights, activations

    def penalty(self) -> float:
        """Eq. 2's two terms at the full β."""
        if not isinstance(self._plan, LearnedWidths):
            return 0.0
        return sum(
            (
                penalty(load.excess(bits, target), beta_of(self._plan, target))
                for load, bits, target in zip(self.loads, self._bits, self.targets, strict=True)
                if np.isfinite(target)
            ),
            start=0.0,
        )

    def check(self, budgets: Sequence[Budget | None]) -> None:
        """Look at the weights' budget, or at both.

        Raises:
            ValueError: one cannot be met with the fewest bits.
        """
        for budget, load in zip(budgets, self.loads, strict=False):
            if budget is not None:
                load.check(budget, self._formats.floor)
