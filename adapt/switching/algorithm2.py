"""AdaPT's algorithm 2, precision switching: when a layer's window of gradients ends, and which format it gets."""

import math

import numpy as np

from adapt.numerics import FixedPoint
from adapt.switching.adapt_state import AdaPTState
from adapt.switching.bounds import fixed_point, within
from adapt.switching.diversity import diversity
from adapt.switching.lookback import next_lookback, next_resolution, next_strategy
from adapt.switching.policy import Observation
from adapt.switching.pushdown import lowest_precision
from adapt.switching.pushup import push_up, push_up_by_diversity


def patience(state: AdaPTState, bounds: tuple[int, int], momentum: float) -> int:
    """Return for how many of the next steps no window can end.

    A window ends with its ⌈lb⌉-th gradient. However diverse the gradients, lb falls no faster than its moving average:
    after k steps it is at least lb_lwr + (1 − γ)^k·(lb − lb_lwr). A lookback outside the bounds, from a run with other
    bounds, is clipped to them at once.

    Args:
        state: the policy's state.
        bounds: (lb_lwr, lb_upr).
        momentum: γ.
    """
    lowest, longest = bounds
    layers = list(zip(state.gradients.tolist(), np.clip(state.lookback, *bounds).tolist(), strict=True))
    for steps in range(1, longest):
        kept = (1 - momentum) ** steps
        for gradients, lookback in layers:
            # The bound and the average are rounded differently; a billionth of a gradient covers the difference.
            if gradients + steps >= math.ceil(lowest + kept * (lookback - lowest) - 1e-9):
                return steps - 1
    return longest - 1


def advance(
    state: AdaPTState,
    observation: Observation,
    *,
    lookback: tuple[int, int],
    resolution: tuple[int, int],
    momentum: float,
    tolerance: float,
    buffer_bits: int,
    by_diversity: bool,
) -> AdaPTState:
    """Return the state after one step.

    It adapts strategy, lookbacks and resolutions, and switches the layers whose window is full. The hyperparameters are
    those of `AdaPT`; `by_diversity` chooses the push-up of algorithm 4 instead of equation 4.
    """
    strategy, losses = _strategy(state, observation.loss, lookback[1])
    formats = state.formats
    # Lists, because reading a single number from an array takes longer than all that is done with it.
    gradients, lookbacks, resolutions = state.gradients.tolist(), state.lookback.tolist(), state.resolution.tolist()
    sum_of_norms, diversities = state.sum_of_norms.tolist(), state.diversity.tolist()
    divergences = state.divergence.copy()
    norms, norms_of_sums = observation.norms.tolist(), observation.norms_of_sums.tolist()
    for i in np.flatnonzero(observation.seen).tolist():
        gradients[i] += 1
        sum_of_norms[i] += norms[i]
        delta = diversities[i] = diversity(sum_of_norms[i], norms_of_sums[i])
        # With a single gradient Δs = 1 by definition, which says nothing.
        if gradients[i] > 1:
            lookbacks[i] = next_lookback(lookbacks[i], delta, bounds=lookback, momentum=momentum)
        else:
            # The lookback may lie outside the bounds, if the run began with others.
            lookbacks[i] = min(max(lookbacks[i], lookback[0]), lookback[1])
        resolutions[i] = next_resolution(
            resolutions[i], lookbacks[i], resolution_bounds=resolution, lookback_bounds=lookback
        )
        if gradients[i] >= math.ceil(lookbacks[i]):
            if observation.sound[i]:
                weights = observation.weights[i]
                lowest, divergences[i] = lowest_precision(weights, resolution=resolutions[i], tolerance=tolerance)
                if by_diversity:
                    current = fixed_point(within(formats[i], observation.bounds[i]), weights)
                    assert isinstance(current, FixedPoint)  # AdaPT never leaves fixed point
                    window = observation.windows[i]
                    form = push_up_by_diversity(lowest, current.widest, window, buffer_bits=buffer_bits)
                else:
                    form = push_up(lowest, delta, strategy, buffer_bits)
                formats = (*formats[:i], form, *formats[i + 1 :])
            gradients[i], sum_of_norms[i] = 0, 0.0
    return AdaPTState(
        formats=formats,
        gradients=np.array(gradients, np.int64),
        lookback=np.array(lookbacks, np.float64),
        resolution=np.array(resolutions, np.int64),
        sum_of_norms=np.array(sum_of_norms, np.float64),
        diversity=np.array(diversities, np.float64),
        divergence=divergences,
        strategy=strategy,
        losses=losses,
        rounding_cost=state.rounding_cost,
    )


def _strategy(state: AdaPTState, loss: float | None, longest: int) -> tuple[str, tuple[float, ...]]:
    """Return the strategy after this loss, and the latest losses, at most `longest`."""
    if loss is None or not math.isfinite(loss):
        return state.strategy, state.losses
    window = math.ceil(float(np.add.reduce(state.lookback)) / len(state.lookback))
    return next_strategy(state.strategy, loss, state.losses[-window:]), (*state.losses, loss)[-longest:]
