"""`AdaPT.compact()`: when formats change, and how many bits the layers share.

`adapt.switching.allocation` shares them out, from figures that are hardly noisy. What rounding costs the loss
(`rounding_cost`) is noisy, and averages to little once training has adapted the weights to their grid, so it is summed
over the layers and decides only how many bits there are altogether. It is measured against the loss or, where no loss
was ever shown, against the gradients themselves (`explained`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapt.numerics import LayerFormat, Precision
from adapt.switching.adapt_state import AdaPTState
from adapt.switching.allocation import allocate
from adapt.switching.bounds import Bounds, fixed_point
from adapt.switching.choices import Count, bits_taken, choices, padded, present_step
from adapt.switching.diversity import diversity
from adapt.switching.entropy import steady
from adapt.switching.policy import Observation
from adapt.switching.rounding_costs import explained, largest_cost, next_bits, rounding_cost

CHECK = 8
"""Steps after which the policy looks, at the latest, whether weights have outgrown their range."""

OUTGROWN = 0.125
"""The share of saturated weights at which a layer's window ends early. Ranges of least squared error leave out up to
4 % of a trained layer's weights, so an eighth means growth."""


def patience(state: AdaPTState, lookback: tuple[int, int]) -> int:
    """Return how many of the next steps certainly end no window: at most `CHECK` − 1, and fewer where one fills up."""
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
) -> AdaPTState:
    """Return the state after one step: windows double, and the first that is full ends all, because only layers that
    are compared can trade bits.

    A layer whose weights outgrow its range gets another at once, wherever the engine measures that: the observation's
    `saturated`, float64 [layers], is the share of the master weights that lie more than half a step outside of the
    range.

    Args:
        state, observation: what the policy remembers, and what it sees of the step.
        lookback: gradients in the first window, and in the longest.
        bits, tolerance, count: as in `switched`.
    """
    seen, formats, losses = observation.seen, state.formats, state.losses
    gradients = state.gradients + seen
    sum_of_norms = state.sum_of_norms + np.where(seen, observation.norms, 0.0)
    pairs = zip(sum_of_norms.tolist(), observation.norms_of_sums.tolist(), strict=True)
    diversities = np.where(seen, [diversity(*pair) for pair in pairs], state.diversity)
    windows = np.clip(state.lookback, *lookback)
    if observation.loss is not None and math.isfinite(observation.loss):
        losses = (*losses, observation.loss)[-lookback[1] :]
    if patience(state, lookback) == 0:
        full = bool((seen & (gradients >= np.ceil(windows))).any())
        outgrown = seen & (getattr(observation, "saturated", np.zeros(len(seen))) > OUTGROWN)
        ended = gradients > 0 if full else outgrown
        judged = Windows(np.flatnonzero(ended & observation.sound), gradients, sum_of_norms, losses)
        formats = switched(formats, judged, observation, bits, tolerance, count)
        windows = np.minimum(2 * windows, lookback[1]) if full else windows
        gradients, sum_of_norms = np.where(ended, 0, gradients), np.where(ended, 0.0, sum_of_norms)
    return replace(
        state,
        formats=formats,
        gradients=gradients,
        lookback=windows,
        sum_of_norms=sum_of_norms,
        diversity=diversities,
        losses=losses,
    )


class Windows(NamedTuple):
    """The windows of gradients that ended.

    Attributes:
        layers: the layers whose window ended, [ended].
        gradients: how many gradients each layer's window holds, [layers].
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
) -> tuple[LayerFormat, ...]:
    """Return the formats after these windows: the layers among them share the bits that are left to them, each within
    the observation's bounds.

    Args:
        formats: the present format of each layer.
        windows: the windows that ended.
        observation: the step with which they ended.
        bits: the mean word length that all layers together are to have; None where the loss decides (`next_bits`):
            rounding these layers may cost tolerance·|loss|·Σn_l/mean(n), which is tolerance·|loss| for a layer of
            average size. Without any loss the gradients decide: rounding may explain 4·tolerance of their energy
            (`explained`), or 4/Σn_l, which is hardly more than chance does.
        tolerance: share of the loss, above 0.
        count: with `bits`, what takes them: "words", whose lengths are chosen with ranges of least squared error, or
            what "entropy" coding leaves of words of unbounded range (`adapt.switching.entropy`).
    """
    moving = windows.layers.tolist()
    if not moving:
        return formats
    numel, tables, spent, kept, cost, largest = [], {}, 0.0, 0.0, 0.0, 0.0
    for layer, chosen_form in enumerate(observation.confined(formats)):
        weights = observation.weights[layer]  # Once, because looking gathers weights that are spread over processes.
        form = fixed_point(chosen_form, weights)
        numel.append(weights.numel())
        if layer not in moving:
            kept += weights.numel() * bits_taken(weights, form, count) if bits is not None else 0.0
        else:
            tables[layer] = choices(weights, form, count, observation.bounds[layer])
            if bits is None:
                assert isinstance(form, Precision)  # AdaPT never leaves fixed point
                spent += weights.numel() * form.word_length
                window = observation.sums[layer], int(windows.gradients[layer]), weights, form
                l1, l2 = float(observation.l1[layer]), observation.l2
                cost += rounding_cost(*window, l1=l1, l2=l2)
                largest += 0.0 if windows.losses else largest_cost(*window, l1=l1, l2=l2)
    sizes = np.array(numel)
    here = max(int(sizes[moving].sum()), 1)
    if bits is not None:
        budget = bits * int(sizes.sum()) - kept
    elif windows.losses:
        latest = windows.losses[-int(windows.gradients[moving].max()) :]
        allowed = tolerance * abs(fmean(latest)) * here / max(float(sizes.mean()), 1)
        budget = next_bits(spent / here, cost, allowed) * here
    else:
        budget = next_bits(spent / here, explained(cost, largest), 4 * max(tolerance, 1 / here)) * here
    powers = np.square(windows.sum_of_norms[moving] / windows.gradients[moving])
    errors = padded([[error for _, error, _ in tables[layer]] for layer in moving])
    taken_by = padded([[length for _, _, length in tables[layer]] for layer in moving])
    costs, prices = powers[:, None] * errors, sizes[moving, None] * taken_by
    chosen = allocate(costs, prices, budget)
    if count == "entropy":
        now = [present_step(tables[layer], formats[layer]) for layer in moving]
        chosen = steady(costs, prices, np.array(now), chosen, budget)
    after = list(formats)
    for layer, index in zip(moving, chosen.tolist(), strict=True):
        after[layer] = tables[layer][index][0]
    return tuple(after)


def check_bounds(bounds: Sequence[Bounds], sizes: Sequence[int], bits: float) -> None:
    """Refuse bounds whose fewest bits are more than all layers may take together.

    Args:
        bounds: the fewest and the most bits of each layer.
        sizes: how many weights each layer has.
        bits: the mean word length that all layers together are to have.

    Raises:
        ValueError: they are.
    """
    fewest = sum(low * size for (low, _), size in zip(bounds, sizes, strict=True)) / max(sum(sizes), 1)
    if fewest > bits:
        raise ValueError(
            f"layer_bits ask for at least {fewest:.4g} bits per weight on average, but bits={bits:g} allows fewer: "
            "lower the bounds, or allow more bits"
        )
