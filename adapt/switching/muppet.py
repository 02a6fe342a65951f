"""MuPPET (Rajagopal et al. 2020): block floating point, one word length for all layers, raised at epoch ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.arguments import check_flags, is_number, is_whole
from adapt.numerics import LONGEST_WORD, SHORTEST_WORD, BlockFloat, LayerFormat
from adapt.switching.fixed import FOREVER
from adapt.switching.policy import Observation, State


@dataclass(frozen=True)
class MuPPETState(State):
    """The state of MuPPET. `formats` follows `word_length`, so a layer that joins gets it too.

    Attributes:
        sum_of_squares: Σ‖g‖₂² of each layer over the window so far, [layers].
        diversity: Σ‖g‖₂²/‖Σg‖₂² of each layer over the latest full window, [layers]; ∞ if there is none.
        word_length: bits of every layer; 32 is float32.
        maximum: the largest mean diversity since the word length was last raised; 0 before the first.
        violations: windows since then whose ratio p was above the threshold.
        epochs: number of finished epochs, until float32 is reached.
        steps: optimizer steps since the end of the last epoch.
    """

    sum_of_squares: NDArray[np.float64]
    diversity: NDArray[np.float64]
    word_length: int
    maximum: float
    violations: int
    epochs: int
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", (_format(self.word_length),) * len(self.formats))

    def check(self) -> None:
        for name in ("maximum", "violations", "epochs", "steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} of MuPPET's state must be a finite number ≥ 0, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class MuPPET:
    """Multi-precision policy enforced training, as in AdaPT 2.2 and, where that is silent, its authors' program.

    All layers share one word length, which only grows, at the ends of epochs, up to float32. Each layer is in block
    floating point (`adapt.numerics`): its scale is computed from its weights whenever they are rounded.
    `controller.precisions` and the trace show the resulting formats; float32 is None in the former and 32 bits in the
    latter. On CUDA, finding the layers' extremes takes one transfer to the host in every step. Once float32 is reached,
    the parameters hold the masters and nothing is left to decide.

    The word length rises when the gradients of different epochs agree. Let g be the gradient of each epoch's last
    mini-batch, Δs the mean over layers of Σ‖g‖²/‖Σg‖² over a window of epochs, and p the largest Δs at this word length
    divided by the present Δs. A p above 1 + 1.5·exp(−0.1·epoch) is a violation; the second violation raises the word
    length and resets the maximum and the count. The printed formulas leave these points open:

    * Windows are blocks of epochs that do not overlap: the paper computes the diversity "after a certain number of
      epochs", and the authors' program resets its sums each time. So a word length lasts at least
      window·(violations + 1) epochs, 9 by default.
    * The outer sum over k of the printed diversity runs over the layers.
    * The epoch in the threshold counts from the start of training, not from the last switch, and begins at 0.
    * Violations need not be consecutive.
    * The printed rounding ⌊x·2^s + Unif(−0.5, 0.5)⌋ is half a step too low on average; stochastic rounding is meant.
    * A layer without a finite, non-zero ‖Σg‖ is left out of the mean; if no layer is left, the window is ignored.

    MuPPET also rounds activations and back-propagated gradients, each tensor with its own scale: attach with
    `activations="range", quantize_errors=True` for that (with block floating point, "layer" means the same).
    A run that ends before float32 leaves quantised weights; `controller.detach("masters")` leaves the float32 masters.

    Args:
        steps_per_epoch: optimizer steps in an epoch: `len(loader)` without accumulation. If None, Lightning's callback
            fills it in. A step that a GradScaler skips does not count.
        word_lengths: bits, increasing, each 2 to 31; float32 follows the last.
        window: number of epochs whose gradients are compared, at least 2: a single gradient has Δs = 1.
        violations: the number of violations that raises the word length.
        threshold: offset, amplitude and decay of the threshold offset + amplitude·exp(−decay·epoch).
        normalize_gradients: divide each layer's gradient by its norm before the update. MuPPET does not.
        quantize_gradients: quantise the gradients of the weights too, stochastically, in the present word length and
            each with its own scale.

    Raises:
        TypeError, ValueError: a hyperparameter is invalid.
    """

    steps_per_epoch: int | None = None
    word_lengths: tuple[int, ...] = (8, 12, 14, 16)
    window: int = 3
    violations: int = 2
    threshold: tuple[float, float, float] = (1.0, 1.5, 0.1)
    normalize_gradients: bool = False
    quantize_gradients: bool = False

    sums_gradients = True
    samples_gradients = True
    keeps_gradients = False
    uses_loss = False

    def __post_init__(self) -> None:
        for name, lowest in (("steps_per_epoch", 1), ("window", 2), ("violations", 1)):
            value = getattr(self, name)
            if not (is_whole(value) and value >= lowest) and not (name == "steps_per_epoch" and value is None):
                raise ValueError(f"{name} must be a whole number ≥ {lowest}, got {value!r}")
        words = arguments.items(self.word_lengths)
        if not words or not all(is_whole(bits) for bits in words):
            raise TypeError(
                f"word_lengths must be whole numbers of bits such as (8, 12, 14, 16), got {self.word_lengths!r}"
            )
        if not SHORTEST_WORD <= words[0] <= words[-1] < LONGEST_WORD or any(a >= b for a, b in pairwise(words)):
            raise ValueError(
                f"word_lengths must increase and lie between {SHORTEST_WORD} and {LONGEST_WORD - 1} bits (float32 "
                f"follows by itself), got {words!r}"
            )
        numbers = arguments.items(self.threshold)
        if len(numbers) != 3 or not all(map(is_number, numbers)):
            raise TypeError(f"threshold must be three numbers (offset, amplitude, decay), got {self.threshold!r}")
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"threshold must be finite numbers ≥ 0 (offset, amplitude, decay), got {numbers!r}")
        object.__setattr__(self, "word_lengths", words)
        object.__setattr__(self, "threshold", numbers)
        check_flags(self, "normalize_gradients", "quantize_gradients")

    def start(self, weights: Sequence[Tensor]) -> MuPPETState:
        """Return the initial state, with every layer at the first word length.

        Raises:
            ValueError: `steps_per_epoch` is not known.
        """
        if self.steps_per_epoch is None:
            raise ValueError(
                "MuPPET decides at the ends of epochs and must know where they are: give steps_per_epoch=len(loader), "
                "the optimizer steps in an epoch"
            )
        layers, word_length = len(weights), self.word_lengths[0]
        return MuPPETState(
            formats=(_format(word_length),) * layers,
            gradients=np.zeros(layers, np.int64),
            sum_of_squares=np.zeros(layers),
            diversity=np.full(layers, np.inf),
            word_length=word_length,
            maximum=0.0,
            violations=0,
            epochs=0,
            steps=0,
        )

    def patience(self, state: MuPPETState) -> int:
        """Return the number of steps before the epoch's last one; in float32 nothing switches any more."""
        assert self.steps_per_epoch is not None  # `start` checked it
        return FOREVER if state.word_length == LONGEST_WORD else max(self.steps_per_epoch - 1 - state.steps, 0)

    def advance(self, state: MuPPETState, observation: Observation) -> MuPPETState:
        """Return the state after one step. An epoch's last step adds its gradient, and a full window is evaluated."""
        if self.patience(state):
            return state if state.word_length == LONGEST_WORD else replace(state, steps=state.steps + 1)
        seen = observation.seen
        state = replace(
            state,
            gradients=state.gradients + seen,
            sum_of_squares=state.sum_of_squares + np.where(seen, np.square(observation.norms), 0.0),
            epochs=state.epochs + 1,
            steps=0,
        )
        return state if state.epochs % self.window else self._judged(state, observation.norms_of_sums)

    def _judged(self, state: MuPPETState, norms_of_sums: NDArray[np.float64]) -> MuPPETState:
        """Return the state after a full window: compare its diversity with the largest so far."""
        diversity = inter_epoch_diversity(state.sum_of_squares, norms_of_sums)
        diversity[state.gradients == 0] = np.inf
        measured = diversity[np.isfinite(diversity)]
        maximum, violations, word_length = state.maximum, state.violations, state.word_length
        if len(measured):
            mean = float(np.mean(measured))
            maximum = max(maximum, mean)
            violations += maximum / mean > switching_threshold(state.epochs - 1, *self.threshold)
            if violations >= self.violations:
                maximum, violations, word_length = 0.0, 0, self._next(word_length)
        return replace(
            state,
            gradients=np.zeros_like(state.gradients),
            sum_of_squares=np.zeros_like(state.sum_of_squares),
            diversity=diversity,
            word_length=word_length,
            maximum=maximum,
            violations=violations,
        )

    def _next(self, word_length: int) -> int:
        return next((bits for bits in self.word_lengths if bits > word_length), LONGEST_WORD)

    def record(self, state: MuPPETState) -> dict[str, NDArray[Any]]:
        """Return MuPPET's diversity of each layer's latest full window."""
        return {"diversity": state.diversity}


def inter_epoch_diversity(
    sum_of_squares: NDArray[np.float64], norms_of_sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AdaPT 2.2 (MuPPET), fourth formula, before the mean over layers: Σ‖g‖₂²/‖Σg‖₂².

    Args:
        sum_of_squares: Σ‖g‖₂² of each layer, [layers].
        norms_of_sums: ‖Σg‖₂ of each layer, [layers].

    Returns:
        [layers]; at least 1/n for n gradients, ∞ if ‖Σg‖ is 0 or anything is not finite.
    """
    with np.errstate(all="ignore"):
        quotient = sum_of_squares / np.square(norms_of_sums)
    return np.where(np.isfinite(quotient) & (quotient > 0), quotient, np.inf)


def switching_threshold(epoch: int, offset: float = 1.0, amplitude: float = 1.5, decay: float = 0.1) -> float:
    """MuPPET: offset + amplitude·exp(−decay·epoch), which the ratio p may not exceed; epochs count from 0.

    Raises:
        TypeError: an argument is not a number.
    """
    given = {"epoch": epoch, "offset": offset, "amplitude": amplitude, "decay": decay}
    epochs, least, excess, rate = (arguments.number(name, value) for name, value in given.items())
    return least + excess * math.exp(-rate * epochs)


def _format(word_length: int) -> LayerFormat:
    return None if word_length == LONGEST_WORD else BlockFloat(word_length)
