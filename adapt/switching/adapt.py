"""AdaPT (Kummer et al. 2021): push down by information loss, push up by gradient diversity, per layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapt.arguments import check_flags, is_number, is_whole
from adapt.numerics import LayerFormat, Precision
from adapt.switching.diversity import diversity
from adapt.switching.frugality import fewest_integer_bits, push_up_by_loss, rounding_cost
from adapt.switching.policy import Observation, State
from adapt.switching.pushdown import lowest_precision
from adapt.switching.pushup import checked_strategy, push_up, push_up_by_diversity
from adapt.switching.tempo import next_lookback, next_resolution, next_strategy

EIGHT_BITS = Precision(8, 4)
PushUp = Literal["suggestion", "diversity", "loss"]


@dataclass(frozen=True)
class AdaPTState(State):
    """What AdaPT remembers: Q of algorithm 1, without the gradients.

    Attributes:
        lookback: lb of each layer, kept as a float, [layers].
        resolution: r of each layer, [layers].
        sum_of_norms: Σ‖G‖ of each layer's window, [layers].
        diversity: Δs of each layer after its latest gradient, [layers].
        divergence: bits that each layer's latest push-down gave up; NaN before the first, [layers].
        strategy: "min", "mean" or "max"; one for the whole network.
        losses: the latest losses, oldest first, as many as the longest lookback can ask for.
    """

    lookback: NDArray[np.float64]
    resolution: NDArray[np.int64]
    sum_of_norms: NDArray[np.float64]
    diversity: NDArray[np.float64]
    divergence: NDArray[np.float64]
    strategy: str
    losses: tuple[float, ...]

    def check(self) -> None:
        """Refuse what no run comes to."""
        checked_strategy(self.strategy)
        for name, lowest in (("gradients", 0), ("lookback", 1), ("resolution", 1), ("sum_of_norms", 0)):
            values = getattr(self, name)
            if not (np.isfinite(values) & (values >= lowest)).all():
                raise ValueError(f"{name} of AdaPT's state must be finite numbers ≥ {lowest}, got {values}")
        if not (self.diversity >= 1).all() or (self.divergence < 0).any():
            raise ValueError(
                f"diversity and divergence of AdaPT's state must be at least 1 and 0, got {self.diversity} and "
                f"{self.divergence}"
            )
        if set(map(type, self.formats)) - {Precision}:
            raise ValueError("formats must be fixed point for every layer: AdaPT never leaves it for float32")


class Window(NamedTuple):
    """A window of gradients that ended: its layer, how many there were, their Δs, the strategy and the mean loss."""

    layer: int
    gradients: int
    diversity: float
    strategy: str
    loss: float | None


@dataclass(frozen=True)
class AdaPT:
    """The paper's policy: algorithm 2 and its hyperparameters, with the paper's values as defaults.

    Args:
        initial: format of every layer before its first switch; None for what push-down asks of its first weights.
        buffer_bits: word-length bits above the fraction that every switch grants, 0 to 30. The paper takes 4,
            and 8 for residual networks and CIFAR-100.
        resolution: lower and upper bound of the histogram bins r that push-down compares.
        lookback: lower and upper bound of the gradients lb in a layer's window.
        lookback_momentum: γ, weight of the new lookback against the old one, 0 to 1.
        kl_tolerance: ε, bits of divergence that push-down may give up; 0 asks for equal histograms.
        normalize_gradients: divide each layer's gradient by its norm before the update.
        quantize_gradients: quantise each layer's gradient stochastically in the layer's format, before anything
            else looks at it.
        push_up: "suggestion" (equation 4), "diversity" (algorithm 4, which keeps every gradient of the window) or
            "loss" (`compact`'s).
        loss_tolerance: with "loss", the share of the loss that rounding one layer may cost before it gets a bit more.

    Raises:
        TypeError, ValueError: a hyperparameter is no sensible one.
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

    sums_gradients = True
    samples_gradients = False
    uses_loss = True

    def __post_init__(self) -> None:
        if self.initial is not None and not isinstance(self.initial, Precision):
            raise TypeError(f"initial must be an adapt.Precision or None, got {self.initial!r}")
        if not is_whole(self.buffer_bits) or not 0 <= self.buffer_bits <= 30:
            raise ValueError(f"buffer_bits must be a whole number from 0 to 30, got {self.buffer_bits!r}")
        for name in ("resolution", "lookback"):
            bounds = getattr(self, name)
            pair = isinstance(bounds, tuple | list) and len(bounds) == 2
            if not pair or not all(map(is_whole, bounds)):
                raise TypeError(f"{name} must be two whole numbers (lower, upper), got {bounds!r}")
            if not 1 <= bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be bounds (lower, upper) with 1 ≤ lower ≤ upper, got {bounds!r}")
            object.__setattr__(self, name, tuple(bounds))
        if not is_number(self.lookback_momentum) or not 0 <= self.lookback_momentum <= 1:
            raise ValueError(f"lookback_momentum must be a number between 0 and 1, got {self.lookback_momentum!r}")
        if not is_number(self.kl_tolerance) or not 0 <= self.kl_tolerance < math.inf:
            raise ValueError(f"kl_tolerance must be a finite number of bits ≥ 0, got {self.kl_tolerance!r}")
        check_flags(self, "normalize_gradients", "quantize_gradients")
        if self.push_up not in get_args(PushUp):
            raise ValueError(f"push_up must be one of {get_args(PushUp)}, got {self.push_up!r}")
        if not is_number(self.loss_tolerance) or not 0 < self.loss_tolerance < math.inf:
            raise ValueError(f"loss_tolerance must be a share of the loss above 0, got {self.loss_tolerance!r}")

    @classmethod
    def compact(cls) -> "AdaPT":
        """The policy that wastes no bits: both directions, layer by layer, as in the paper, at a fifth of its bits.

        Train with `rounding="nearest"`, as what is evaluated and shipped is rounded too. What replaces the paper's
        rules:

        * Push-down gives up 2 bits of divergence instead of none: weights need no more levels than training can feel.
        * Push-up measures what rounding costs, ⟨ΣG/n, Q(W) − W⟩ of the window (`adapt.switching.rounding_cost`),
          instead of testing one batch's loss: a layer gets one bit more where that is above `loss_tolerance` of the
          loss, so bits return late, when the loss has fallen and the same error weighs more.
        * A bit is given back only where rounding costs clearly less, and at least two bits above what push-down asks
          for: formats do not flip on the noise of one window.
        * Integer bits are the fewest for which saturation adds no more squared error than rounding does, and there are
          no buffer bits: a few outliers are clipped.
        * Layers start where push-down puts their first weights, so that a trained network can be refined too.
        * Gradients keep their norms, so learning rates and penalties are those of float32.

        What it measures is what rounding the weights costs, and there are no buffer bits, so activations in the
        layers' formats would get too few bits to train: give them a word of their own, `attach(..., activations=8)`.

        Without losses (see `Controller.observe`) push-down alone decides.
        """
        return cls(initial=None, buffer_bits=0, kl_tolerance=2.0, normalize_gradients=False, push_up="loss")

    @property
    def keeps_gradients(self) -> bool:
        """Algorithm 4 quantises the window's gradients anew for every candidate format."""
        return self.push_up == "diversity"

    def start(self, weights: Sequence[Tensor]) -> AdaPTState:
        """Every layer in its first format, the longest lookback, the coarsest resolution; strategy "min".

        Raises:
            ValueError: a layer's first weights are not finite, and `initial` is None.
        """
        layers = len(weights)
        if self.initial is not None:
            # Weights that are spread over processes are put together when they are looked at.
            formats = (self.initial,) * layers
        else:
            formats = tuple(self._first(weights[layer]) for layer in range(layers))
        return AdaPTState(
            formats=formats,
            gradients=np.zeros(layers, np.int64),
            lookback=np.full(layers, float(self.lookback[1])),
            resolution=np.full(layers, self.resolution[0], np.int64),
            sum_of_norms=np.zeros(layers),
            diversity=np.ones(layers),
            divergence=np.full(layers, np.nan),
            strategy="min",
            losses=(),
        )

    def patience(self, state: AdaPTState) -> int:
        """A window ends with its ⌈lb⌉-th gradient, and however diverse the gradients, lb falls no faster than
        its average lets it: k steps on it is at least lb_lwr + (1 − γ)^k·(lb − lb_lwr). A lookback that other bounds
        left outside of these comes inside at once."""
        lowest, longest = self.lookback
        lookbacks = np.clip(state.lookback, lowest, longest)
        layers = list(zip(state.gradients.tolist(), lookbacks.tolist(), strict=True))
        for steps in range(1, longest):
            kept = (1 - self.lookback_momentum) ** steps
            for gradients, lookback in layers:
                # The bound and the average round differently; a billionth of a gradient covers that.
                if gradients + steps >= math.ceil(lowest + kept * (lookback - lowest) - 1e-9):
                    return steps - 1
        return longest - 1

    def advance(self, state: AdaPTState, observation: Observation) -> AdaPTState:
        """Algorithm 2: adapt strategy, lookback and resolution, and switch the layers whose window is full."""
        strategy, losses = self._strategy(state, observation.loss)
        formats = state.formats
        # Lists: reading one number of an array takes longer than all that is done with it.
        gradients, lookback, resolution = state.gradients.tolist(), state.lookback.tolist(), state.resolution.tolist()
        sum_of_norms, diversities = state.sum_of_norms.tolist(), state.diversity.tolist()
        divergences = state.divergence.copy()
        norms, norms_of_sums = observation.norms.tolist(), observation.norms_of_sums.tolist()
        for layer in np.flatnonzero(observation.seen).tolist():
            gradients[layer] += 1
            sum_of_norms[layer] += norms[layer]
            delta = diversities[layer] = diversity(sum_of_norms[layer], norms_of_sums[layer])
            # The first gradient of a window has Δs = 1 by definition, which says nothing.
            if gradients[layer] > 1:
                lookback[layer] = next_lookback(
                    lookback[layer], delta, bounds=self.lookback, momentum=self.lookback_momentum
                )
            else:
                # Other bounds, of the run that the state is from, may have left it outside of these.
                lookback[layer] = min(max(lookback[layer], self.lookback[0]), self.lookback[1])
            resolution[layer] = next_resolution(
                resolution[layer],
                lookback[layer],
                resolution_bounds=self.resolution,
                lookback_bounds=self.lookback,
            )
            if gradients[layer] >= math.ceil(lookback[layer]):
                if observation.sound[layer]:
                    window = Window(
                        layer, gradients[layer], delta, strategy, fmean(losses[-gradients[layer] :]) if losses else None
                    )
                    form, divergences[layer] = self._switch(window, resolution[layer], formats[layer], observation)
                    formats = (*formats[:layer], form, *formats[layer + 1 :])
                gradients[layer], sum_of_norms[layer] = 0, 0.0
        return AdaPTState(
            formats=formats,
            gradients=np.array(gradients, np.int64),
            lookback=np.array(lookback, np.float64),
            resolution=np.array(resolution, np.int64),
            sum_of_norms=np.array(sum_of_norms, np.float64),
            diversity=np.array(diversities, np.float64),
            divergence=divergences,
            strategy=strategy,
            losses=losses,
        )

    def _strategy(self, state: AdaPTState, loss: float | None) -> tuple[str, tuple[float, ...]]:
        if loss is None or not math.isfinite(loss):
            return state.strategy, state.losses
        window = math.ceil(float(np.add.reduce(state.lookback)) / len(state.lookback))
        strategy = next_strategy(state.strategy, loss, state.losses[-window:])
        return strategy, (*state.losses, loss)[-self.lookback[1] :]

    def _first(self, weights: Tensor) -> Precision:
        lowest, _ = lowest_precision(weights, resolution=self.resolution[0], tolerance=self.kl_tolerance)
        return self._trimmed(weights, lowest.fraction_length) if self.push_up == "loss" else lowest

    def _trimmed(self, weights: Tensor, fraction_length: int) -> Precision:
        return Precision(fewest_integer_bits(weights, fraction_length) + fraction_length, fraction_length)

    def _switch(
        self, window: Window, resolution: int, current: LayerFormat, observation: Observation
    ) -> tuple[Precision, float]:
        weights = observation.weights[window.layer]
        lowest, given_up = lowest_precision(weights, resolution=resolution, tolerance=self.kl_tolerance)
        if self.push_up == "suggestion":
            return push_up(lowest, window.diversity, window.strategy, self.buffer_bits), given_up
        assert isinstance(current, Precision)  # AdaPT never leaves fixed point
        if self.push_up == "diversity":
            kept = observation.windows[window.layer]
            return push_up_by_diversity(lowest, current, kept, buffer_bits=self.buffer_bits), given_up
        fraction_length = lowest.fraction_length
        if window.loss is not None:
            cost = rounding_cost(
                observation.sums[window.layer],
                window.gradients,
                weights,
                current,
                l1=float(observation.l1[window.layer]),
                l2=observation.l2,
            )
            fraction_length = push_up_by_loss(lowest, current, cost, self.loss_tolerance * abs(window.loss))
        return self._trimmed(weights, fraction_length), given_up

    def record(self, state: AdaPTState) -> dict[str, NDArray[Any]]:
        """The columns of algorithm 2."""
        return {
            "lookback": state.lookback,
            "resolution": state.resolution,
            "diversity": state.diversity,
            "divergence": state.divergence,
        }
