"""AdaPT (Kummer et al. 2021): push down by information loss, push up by gradient diversity, per layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt import arguments
from adapt.arguments import check_flags, check_option, is_number, is_whole
from adapt.numerics import SHORTEST_WORD, Bounds, FixedPoint, Precision
from adapt.switching import algorithm2, choices, compact
from adapt.switching.adapt_state import AdaPTState
from adapt.switching.allocation import WORDS, best_ranges, sample
from adapt.switching.channel_ranges import best_channel_ranges, channel_format, sampled
from adapt.switching.divergence import checked_values
from adapt.switching.entropy import first_step
from adapt.switching.policy import Observation
from adapt.switching.pushdown import push_down
from adapt.switching.pushup import STRATEGIES

EIGHT_BITS = Precision(8, 4)

PushUp = Literal["suggestion", "diversity", "loss"]


class Overrides(TypedDict, total=False):
    """Arguments of `AdaPT.compact`: the hyperparameters of `AdaPT`, listed for editors and command lines."""

    initial: Precision | None
    buffer_bits: int
    resolution: tuple[int, int]
    lookback: tuple[int, int]
    lookback_momentum: float
    kl_tolerance: float
    normalize_gradients: bool
    quantize_gradients: bool
    push_up: PushUp
    loss_tolerance: float
    bits: float | None
    count: choices.Count
    channels: bool


@dataclass(frozen=True)
class AdaPT:
    """The paper's policy: algorithm 2 and its hyperparameters, with the paper's values as defaults.

    Args:
        initial: format of every layer before its first switch; None lets push-down choose it for the first weights.
        buffer_bits: word-length bits that every switch adds to the fraction length, 0 to 30. The paper uses 4, and 8
            for residual networks and CIFAR-100.
        resolution: lower and upper bound of the number r of histogram bins that push-down compares.
        lookback: lower and upper bound of the number lb of gradients in a layer's window.
        lookback_momentum: γ, weight of the new lookback against the old one, 0 to 1.
        kl_tolerance: ε, bits of divergence that push-down may give up; 0 requires equal histograms.
        normalize_gradients: divide each layer's gradient by its norm before the update.
        quantize_gradients: quantise each layer's gradient stochastically in the layer's format, before anything
            else sees it.
        push_up: "suggestion" (equation 4), "diversity" (algorithm 4, which keeps every gradient of the window) or
            "loss", which replaces push-down and push-up by the rules of `compact`.
        loss_tolerance: with "loss" and without `bits`, the share of the loss that rounding a layer of average size
            may cost before the layers get more bits.
        bits: with "loss", the mean bits per weight: 2 to 16 if words are counted, up to 16 if entropy is; None lets the
            loss decide.
        count: what `bits` counts: "words", as stored by hardware, or their "entropy", as in compressed files. With
            "entropy" only steps are chosen, in words so long that no weight is clipped.
        channels: with "loss", whether every output channel of a layer gets its own fraction length, of least squared
            error; the layer has one word length. Hardware shifts each channel's sums by another number of bits.

    Raises:
        TypeError, ValueError: a hyperparameter is invalid.
    """

    initial: Precision | None = EIGHT_BITS
    buffer_bits: int = 4
    resolution: tuple[int, int] = (50, 150)
    lookback: tuple[int, int] = (25, 100)
    lookback_momentum: float = 0.33
    kl_tolerance: float = 0.01
    normalize_gradients: bool = True
    quantize_gradients: bool = False
    push_up: PushUp = "suggestion"
    loss_tolerance: float = 0.001
    bits: float | None = None
    count: choices.Count = "words"
    channels: bool = False

    sums_gradients = True
    samples_gradients = False

    def __post_init__(self) -> None:
        if self.initial is not None and not isinstance(self.initial, Precision):
            raise TypeError(f"initial must be an adapt.Precision or None, got {self.initial!r}")
        if not is_whole(self.buffer_bits) or not 0 <= self.buffer_bits <= 30:
            raise ValueError(f"buffer_bits must be a whole number from 0 to 30, got {self.buffer_bits!r}")
        for name in ("resolution", "lookback"):
            object.__setattr__(self, name, arguments.bounds(name, getattr(self, name)))
        if not is_number(self.lookback_momentum) or not 0 <= self.lookback_momentum <= 1:
            raise ValueError(f"lookback_momentum must be a number between 0 and 1, got {self.lookback_momentum!r}")
        if not is_number(self.kl_tolerance) or not 0 <= self.kl_tolerance < math.inf:
            raise ValueError(f"kl_tolerance must be a finite number of bits ≥ 0, got {self.kl_tolerance!r}")
        check_flags(self, "normalize_gradients", "quantize_gradients", "channels")
        check_option("push_up", self.push_up, get_args(PushUp))
        check_option("count", self.count, get_args(choices.Count))
        if self.count == "entropy" and self.bits is None:
            raise ValueError('count="entropy" needs a budget, such as bits=3, got bits=None')
        if self.channels and (self.push_up != "loss" or self.count == "entropy"):
            raise ValueError(
                'channels=True needs push_up="loss" and count="words", got '
                f"push_up={self.push_up!r} and count={self.count!r}: use AdaPT.compact(channels=True)"
            )
        if self.bits is not None:
            least = 0 if self.count == "entropy" else SHORTEST_WORD
            if not (is_number(self.bits) and self.bits > 0 and least <= self.bits <= WORDS[-1]):
                raise ValueError(f"bits must be a number from {least} to {WORDS[-1]} or None, got {self.bits!r}")
            if self.push_up != "loss":
                raise ValueError(
                    f'bits={self.bits!r} needs push_up="loss", got {self.push_up!r}: use AdaPT.compact(bits=…)'
                )
        if not is_number(self.loss_tolerance) or not 0 < self.loss_tolerance < math.inf:
            raise ValueError(f"loss_tolerance must be a share of the loss above 0, got {self.loss_tolerance!r}")

    @classmethod
    def compact(cls, **overrides: Unpack[Overrides]) -> "AdaPT":
        """Return the policy that wastes no bits: layers gain and lose bits as in the paper, at a fifth of its bits.

        `compact(bits=4)` trains with 4 bits per weight on average; `compact()` uses as many as the loss requires;
        `compact(bits=3, count="entropy")` spends 3 bits per weight of an entropy-coded file;
        `compact(bits=4, channels=True)` gives every output channel its own fraction length. Train with
        `rounding="nearest"`, because evaluated and exported weights are rounded to nearest too. These rules replace the
        paper's (`adapt.switching.compact`):

        * Each bit goes where it lowers the loss most. The cost of rounding layer l is proportional to ‖G_l‖² times the
          mean squared error of its weights; in the end another bit per weight would gain about the same in every layer.
          A rule that allows every layer the same cost, whatever its size, would starve small layers, where bits are
          nearly free.
        * Ranges minimise the squared error, so a short word clips a few large weights for a finer step: at 3 and 4 bits
          that is worth a bit.
        * Without `bits` the loss decides how many there are: rounding costs ⟨ΣG/n, Q(W) − W⟩, summed over all layers
          (`rounding_cost`). Above `loss_tolerance` of the loss, the average word grows by a bit; far below it, it
          shrinks by one. If no loss was ever shown, the gradients decide in the same way, by how much of their energy
          rounding errors explain (`explained`).
        * Windows of gradients begin with 2 steps and double, so that ranges follow growing weights early on, and
          formats settle long before training ends. Windows end for all layers at once, so that layers can be compared.
          A format stays unless another is clearly better.
        * Layers start at 8 bits, or at ⌊bits⌋, with the range that suits their first weights.
        * Gradients keep their norms, so learning rates and penalties are those of float32.

        There are no buffer bits, so activations in the layers' formats would get too few bits to train: give them their
        own word length, `attach(..., activations=8)`.

        Args:
            overrides: hyperparameters that replace those of `compact`. `lookback` is the length of the first and of the
                longest window; `resolution`, `lookback_momentum` and `kl_tolerance` have no effect.
        """
        own: dict[str, Any] = {"initial": None, "buffer_bits": 0, "lookback": (2, 128), "normalize_gradients": False}
        return cls(**{**own, "push_up": "loss", **overrides})

    @property
    def uses_loss(self) -> bool:
        """Whether the loss matters: to the strategy of "suggestion" and, without a budget, to `compact`."""
        return self.push_up == "suggestion" or (self.push_up == "loss" and self.bits is None)

    @property
    def keeps_gradients(self) -> bool:
        """Whether the policy needs every gradient of the window: algorithm 4 quantises them to every candidate."""
        return self.push_up == "diversity"

    def check_bounds(self, bounds: Sequence[Bounds], sizes: Sequence[int]) -> None:
        """Check that the budget of `bits` allows these bounds of the layers' words; see `compact.check_bounds`."""
        if self.bits is not None and self.count == "words":
            compact.check_bounds(bounds, sizes, self.bits)

    def start(self, weights: Sequence[Tensor]) -> AdaPTState:
        """Return the initial state, with strategy "min".

        Every layer has its first format, the longest lookback (under `compact` the shortest) and the coarsest
        resolution.

        Raises:
            ValueError: a layer's first weights are not finite, and `initial` is None.
        """
        layers = len(weights)
        return AdaPTState(
            # Weights are read only if needed, because reading gathers those that are sharded over processes.
            formats=tuple(self.initial or self._first(weights[layer]) for layer in range(layers)),
            gradients=np.zeros(layers, np.int64),
            lookback=np.full(layers, float(self.lookback[0 if self.push_up == "loss" else 1])),
            resolution=np.full(layers, self.resolution[0], np.int64),
            sum_of_norms=np.zeros(layers),
            diversity=np.ones(layers),
            divergence=np.full(layers, np.nan),
            strategy="min",
            losses=(),
            rounding_cost=np.full(layers, np.nan),
        )

    def patience(self, state: AdaPTState) -> int:
        """Return for how many of the next steps no window can end."""
        if self.push_up == "loss":
            return compact.patience(state, self.lookback)
        return algorithm2.patience(state, self.lookback, self.lookback_momentum)

    def advance(self, state: AdaPTState, observation: Observation) -> AdaPTState:
        """Return the state after one step of algorithm 2, or of the rules of `compact`."""
        if self.push_up == "loss":
            return compact.advance(
                state,
                observation,
                lookback=self.lookback,
                bits=self.bits,
                tolerance=self.loss_tolerance,
                count=self.count,
                channels=self.channels,
            )
        return algorithm2.advance(
            state,
            observation,
            lookback=self.lookback,
            resolution=self.resolution,
            momentum=self.lookback_momentum,
            tolerance=self.kl_tolerance,
            buffer_bits=self.buffer_bits,
            by_diversity=self.push_up == "diversity",
        )

    def _first(self, weights: Tensor) -> FixedPoint:
        if self.push_up != "loss":
            return push_down(weights, resolution=self.resolution[0], tolerance=self.kl_tolerance)
        checked_values(weights, "weights")
        if self.bits is not None and self.count == "entropy":
            return first_step(weights, self.bits)
        word_length = EIGHT_BITS.word_length if self.bits is None else int(self.bits)
        if self.channels:
            return channel_format(word_length, best_channel_ranges(sampled(weights), [word_length])[0])
        return best_ranges(sample(weights), [word_length])[0][0]

    def record(self, state: AdaPTState) -> dict[str, NDArray[Any]]:
        """Return the trace's columns of algorithm 2; of `compact`, the rounding cost in place of the strategy."""
        columns = {name: getattr(state, name) for name in ("lookback", "resolution", "diversity", "divergence")}
        if self.push_up == "loss":
            return {**columns, "rounding_cost": state.rounding_cost}
        return {**columns, "strategy": np.full(len(state.formats), 1 + STRATEGIES.index(state.strategy))}
