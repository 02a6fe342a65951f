"""The policy that never switches: one format for every layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.arguments import check_flags
from adapt.numerics import LayerFormat, Precision
from adapt.switching.policy import Observation, State

FOREVER = 2**62


@dataclass(frozen=True)
class Fixed:
    """Train every layer in one format from the first step to the last.

    Args:
        precision: the format.
        normalize_gradients: divide each layer's gradient by its norm before the update.
        quantize_gradients: quantise each layer's gradient stochastically in `precision` too.
    """

    precision: Precision
    normalize_gradients: bool = False
    quantize_gradients: bool = False

    sums_gradients = False
    samples_gradients = False
    keeps_gradients = False
    uses_loss = False

    def __post_init__(self) -> None:
        if not isinstance(self.precision, Precision):
            raise TypeError(f"precision must be an adapt.Precision, got {self.precision!r}")
        check_flags(self, "normalize_gradients", "quantize_gradients")

    def start(self, weights: Sequence[Tensor]) -> State:
        """Return the only state that there is."""
        return State((self.precision,) * len(weights), np.zeros(len(weights), np.int64))

    def patience(self, state: State) -> int:
        """Return 0 for the first step of a run that began in another format; no other step switches."""
        return FOREVER if state.formats == self._formats(state) else 0

    def advance(self, state: State, observation: Observation) -> State:
        """Return the state with every layer in the one format."""
        formats = self._formats(state)
        return state if state.formats == formats else replace(state, formats=formats)

    def _formats(self, state: State) -> tuple[LayerFormat, ...]:
        return (self.precision,) * len(state.formats)

    def record(self, state: State) -> dict[str, NDArray[Any]]:
        """Return no columns: without windows there is nothing to report but the formats."""
        return {}
