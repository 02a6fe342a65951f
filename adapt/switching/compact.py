"""`AdaPT.compact()`: when formats change, and how many bits the layers share.

`adapt.switching.allocation` divides the bits among the layers, from figures with little noise. The effect of rounding
on the loss (`rounding_cost`) is noisy, and averages to little once training has adapted the weights to their grid. So
it is summed over the layers, and only decides the total number of bits. It is measured against the loss or, if no loss
was ever shown, against the gradients themselves (`explained`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapt.numerics import Bounds, ChannelPrecision, FixedPoint, LayerFormat
from adapt.switching.adapt_state import AdaPTState
from adapt.switching.allocation import allocate
from adapt.switching.bounds import fixed_point
from adapt.switching.choices import Count, bits_taken, choices, padded, present_step
from adapt.switching.diversity import diversity
from adapt.switching.entropy import steady
from adapt.switching.policy import Observation
from adapt.switching.rounding_costs import explained, next_bits, rounding_costs

CHECK = 8
"""At least every so many steps, the policy checks whether weights have outgrown their range."""

OUTGROWN = 0.125
"""The share of saturated weights at which a layer's window ends early. Ranges of least squared error clip up to 4 % of
a trained layer's weights, so an eighth means that the weights have grown."""


def patience(state: AdaPTState, lookback: tuple[int, int]) -> int:
    """Return for how many of the next steps no window can end: at most `CHECK` − 1, and fewer if one fills up."""
    windows = np.ceil(np.clip(state.lookback, *lookback))
    rest = int((windows - state.gradients).min(initial=lookback[1])) - 1
    return max(min(rest, int(-state.gradients.max(initial=0) - 1) % CHECK), 0)


def advance(
    state: AdaPTState,
    observation: Observation,
    *,
    lookback: tuple[int, int],
    bits: float | None,
    tolerance: float,
    count: Count = "words",
    channels: bool = False,
) -> AdaPTState:
    """Return the state after one step.

    The first full window ends all windows, because only layers judged together can trade bits; then windows double. A
    layer whose weights outgrow its range gets another one at once, if the engine measures saturation: the observation's
    `saturated`, float64 [layers], is the share of the master weights outside the range.

    Args:
        state: the policy's state.
        observation: the step.
        lookback: gradients in the first and in the longest window.
        bits, tolerance, count, channels: as in `switched`.
    """
    seen, formats, losses = observation.seen, state.formats, state.losses
    gradients = state.gradients + seen
    sum_of_norms = state.sum_of_norms + np.where(seen, observation.norms, 0.0)
    pairs = zip(sum_of_norms.tolist(), observation.norms_of_sums.tolist(), strict=True)
    diversities = np.where(seen, [diversity(*pair) for pair in pairs], state.diversity)
    rounding_cost = state.rounding_cost.copy()
    windows = np.clip(state.lookback, *lookback)
    if observation.loss is not None and math.isfinite(observation.loss):
        losses = (*losses, observation.loss)[-lookback[1] :]
    if patience(state, lookback) == 0:
        full = bool((seen & (gradients >= np.ceil(windows))).any())
        outgrown = seen & (getattr(observation, "saturated", np.zeros(len(seen))) > OUTGROWN)
        ended = gradients > 0 if full else outgrown
        judged = Windows(np.flatnonzero(ended & observation.sound), gradients, sum_of_norms, losses)
        formats, rounding_cost[judged.layers] = switched(
            formats, judged, observation, bits, tolerance, count, channels=channels
        )
        windows = np.minimum(2 * windows, lookback[1]) if full else windows
        gradients, sum_of_norms = np.where(ended, 0, gradients), np.where(ended, 0.0, sum_of_norms)
    return replace(
        state,
        formats=formats,
        gradients=gradients,
        lookback=windows,
        sum_of_norms=sum_of_norms,
        diversity=diversities,
        rounding_cost=rounding_cost,
        losses=losses,
    )


class Windows(NamedTuple):
    """The windows of gradients that have ended.

    Attributes:
        layers: the layers whose window ended, [ended].
        gradients: the number of gradients in each layer's window, [layers].
        sum_of_norms: Σ‖G‖ of each layer's window, [layers].
        losses: the latest losses, oldest first.
    """

    layers: NDArray[np.int64]
    gradients: NDArray[np.int64]
    sum_of_norms: NDArray[np.float64]
    losses: Sequence[float]


def switched(
    formats: tuple[LayerFormat, ...],
    windows: Windows,
    observation: Observation,
    bits: float | None,
    tolerance: float,
    count: Count = "words",
    *,
    channels: bool = False,
) -> tuple[tuple[LayerFormat, ...], list[float]]:
    """Return the formats after these windows, and the `rounding_cost` of each layer whose window ended. These layers
    share the bits that the others leave, each within the observation's bounds.

    Args:
        formats: the present format of each layer.
        windows: the windows that ended.
        observation: the step with which they ended; its bounds confine every format.
        bits: the mean bits per weight over all layers; None lets the loss decide (`next_bits`): rounding these layers
            may cost tolerance·|loss|·Σn_l/mean(n), which is tolerance·|loss| for a layer of average size. Without any
            loss the gradients decide: rounding may explain 4·tolerance of their energy (`explained`), or 4/Σn_l, which
            is hardly more than chance does.
        tolerance: share of the loss, above 0.
        count: what `bits` counts: "words", whose lengths are chosen with ranges of least squared error, or the
            "entropy" of words of unbounded range (`adapt.switching.entropy`).
        channels: whether every output channel gets its own fraction length (`adapt.switching.channel_ranges`); then the
            observation's weights and sums are [channels, elements].
    """
    moving = windows.layers.tolist()
    if not moving:
        return formats, []
    numel, tables, spent, kept, largest, costs = [], {}, 0.0, 0.0, 0.0, list[float]()
    for layer, chosen_form in enumerate(observation.confined(formats)):
        weights = observation.weights[layer]  # Read once, because reading gathers sharded weights.
        form = fixed_point(chosen_form, weights)
        if isinstance(form, ChannelPrecision) and not channels:
            form = form.widest  # The run began with channels.
        numel.append(weights.numel())
        if layer not in moving:
            kept += weights.numel() * bits_taken(weights, form, count) if bits is not None else 0.0
        else:
            tables[layer] = choices(weights, form, count, observation.bounds[layer], channels=channels)
            assert isinstance(form, FixedPoint)  # AdaPT never leaves fixed point
            sums, gradients = observation.sums[layer], int(windows.gradients[layer])
            l1, l2 = float(observation.l1[layer]), observation.l2
            cost, most = rounding_costs(sums, gradients, weights, form, l1=l1, l2=l2)
            costs.append(cost)
            largest += most
            spent += weights.numel() * form.word_length
    sizes = np.array(numel)
    here = max(int(sizes[moving].sum()), 1)
    if bits is not None:
        budget = bits * int(sizes.sum()) - kept
    elif windows.losses:
        latest = windows.losses[-int(windows.gradients[moving].max()) :]
        allowed = tolerance * abs(fmean(latest)) * here / max(float(sizes.mean()), 1)
        budget = next_bits(spent / here, sum(costs), allowed) * here
    else:
        budget = next_bits(spent / here, explained(sum(costs), largest), 4 * max(tolerance, 1 / here)) * here
    powers = np.square(windows.sum_of_norms[moving] / windows.gradients[moving])
    errors = padded([[error for _, error, _ in tables[layer]] for layer in moving])
    taken_by = padded([[length for _, _, length in tables[layer]] for layer in moving])
    losses, prices = powers[:, None] * errors, sizes[moving, None] * taken_by
    chosen = allocate(losses, prices, budget)
    if count == "entropy":
        now = [present_step(tables[layer], formats[layer]) for layer in moving]
        chosen = steady(losses, prices, np.array(now), chosen, budget)
    after = list(formats)
    for layer, index in zip(moving, chosen.tolist(), strict=True):
        after[layer] = tables[layer][index][0]
    return tuple(after), costs


def check_bounds(bounds: Sequence[Bounds], sizes: Sequence[int], bits: float) -> None:
    """Check that the fewest bits of all layers together do not exceed the budget.

    Args:
        bounds: the fewest and the most bits of each layer.
        sizes: the number of weights of each layer.
        bits: the mean word length over all weights.

    Raises:
        ValueError: they do.
    """
    fewest = sum(low * size for (low, _), size in zip(bounds, sizes, strict=True)) / max(sum(sizes), 1)
    if fewest > bits:
        raise ValueError(
            f"layer_bits ask for at least {fewest:.4g} bits per weight on average, but bits={bits:g} allows fewer: "
            "lower the bounds, or allow more bits"
        )
