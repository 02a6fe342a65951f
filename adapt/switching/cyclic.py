"""Cyclic precision training (Fu et al. 2021, arXiv 2101.09868): one word length that rises and falls with the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.arguments import is_whole
from adapt.numerics import LONGEST_WORD, SHORTEST_WORD, BlockFloat
from adapt.switching.fixed import FOREVER
from adapt.switching.policy import Observation, State


@dataclass(frozen=True)
class CyclicState(State):
    """The state of cyclic precision.

    Attributes:
        step: optimizer steps so far.
    """

    step: int

    def check(self) -> None:
        if self.step < 0:
            raise ValueError(f"step of CyclicPrecision's state must be at least 0, got {self.step}")


@dataclass(frozen=True)
class CyclicPrecision:
    """One word length for all layers, which repeatedly climbs from the lower to the upper bound along a cosine.

    Few bits let training explore, like a high learning rate, and many let it settle; the authors report float32's
    accuracy or better, with a third less arithmetic than at the upper bound throughout. Each layer is in block floating
    point (`adapt.numerics`), so its scale follows its largest weight. After `total_steps` the last word length stays.

    The authors round activations to the same word length, and errors to 8 bits: attach with `activations="range"` for
    the former. They choose the lower bound by short runs from 2 bits upwards: the first word length that learns.

    Args:
        total_steps: optimizer steps of the whole training.
        bits: lower and upper bound of the word length; the authors use 3 and 8.
        cycles: N, how often the word length climbs; 32 in all of the authors' experiments.

    Raises:
        TypeError, ValueError: a hyperparameter is invalid.
    """

    total_steps: int
    bits: tuple[int, int] = (3, 8)
    cycles: int = 32

    normalize_gradients = False
    quantize_gradients = False
    sums_gradients = False
    samples_gradients = False
    keeps_gradients = False
    uses_loss = False

    def __post_init__(self) -> None:
        for name in ("total_steps", "cycles"):
            if not (is_whole(value := getattr(self, name)) and value >= 1):
                raise ValueError(f"{name} must be a whole number ≥ 1, got {value!r}")
        if self.cycles > self.total_steps:
            raise ValueError(f"cycles must be at most total_steps, {self.total_steps}, got {self.cycles}")
        lowest, highest = arguments.bounds("bits", self.bits)
        if not SHORTEST_WORD <= lowest <= highest < LONGEST_WORD:
            raise ValueError(f"bits must lie between {SHORTEST_WORD} and {LONGEST_WORD - 1}, got {self.bits!r}")
        object.__setattr__(self, "bits", (lowest, highest))

    def word_length(self, step: int) -> int:
        """Return the word length of step `step` in bits; steps count from 0."""
        step = min(step, self.total_steps - 1)
        return cyclic_word_length(step, self.total_steps / self.cycles, self.bits)

    def start(self, weights: Sequence[Tensor]) -> CyclicState:
        """Return the state before the first step: every layer at the lower bound."""
        layers = len(weights)
        return CyclicState((BlockFloat(self.word_length(0)),) * layers, np.zeros(layers, np.int64), step=0)

    def patience(self, state: CyclicState) -> int:
        """Return for how many of the next steps the word length stays."""
        form = BlockFloat(self.word_length(state.step))
        if any(other != form for other in state.formats):
            return 0  # A layer joined, or the run began under other bounds.
        changes = (
            k for k in range(self.total_steps - state.step) if self.word_length(state.step + k + 1) != form.word_length
        )
        return next(changes, FOREVER)

    def advance(self, state: CyclicState, observation: Observation) -> CyclicState:
        """Return the state after one step, with the word length of the next."""
        step = state.step + 1
        return replace(state, formats=(BlockFloat(self.word_length(step)),) * len(state.formats), step=step)

    def record(self, state: CyclicState) -> dict[str, NDArray[Any]]:
        """Return no columns: there is nothing to record besides the formats."""
        return {}


def cyclic_word_length(step: int, period: float, bits: tuple[int, int]) -> int:
    """Fu et al. 2021, equation 1: B(t) = ⌊B_min + ½(B_max − B_min)(1 − cos(π·(t mod T)/T))⌉.

    Args:
        step: t, from 0.
        period: T, steps per cycle; need not be a whole number.
        bits: (B_min, B_max).

    Returns:
        The word length in bits; halves go to the even neighbour.

    Raises:
        TypeError: an argument is not a number, or the bounds are not two of them.
        ValueError: the bounds are reversed.
    """
    step, period = arguments.whole("step", step), arguments.number("period", period)
    lowest, highest = arguments.bounds("bits", bits)
    return round(lowest + (highest - lowest) / 2 * (1 - math.cos(math.pi * (step % period) / period)))
