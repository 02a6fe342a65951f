"""The initial state of a run: masters, the table of formats, and the first steps and ranges."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapt import user_warnings
from adapt.distributed import ranks
from adapt.distributed.sharding import is_sharded
from adapt.layers.channels import channels_by_layer
from adapt.layers.layer_bits import bounds_of
from adapt.layers.naming import module_site
from adapt.layers.view import Pin
from adapt.learned.activations import InputQuantizers, SiteStatistics
from adapt.learned.budget import LONGEST
from adapt.learned.calibration import best_step, gaussian_range
from adapt.learned.format_table import FormatTable
from adapt.learned.lsq import bounds, initial_step
from adapt.learned.masters import LearnedMasters
from adapt.learned.options import FixedWidths, LearnedWidths, Plan
from adapt.learned.range_growth import begins_small, growth, has_grown, outgrown
from adapt.numerics import LONGEST_WORD

HEADROOM = 2
"""All formats begin with this many bits above the budget's average."""


def prepare(
    plan: Plan,
    layers: Mapping[str, Tensor],
    module: nn.Module,
    pin: Pin,
    *,
    table: type[FormatTable] = FormatTable,
    masters: type[LearnedMasters] = LearnedMasters,
) -> tuple[LearnedMasters, FormatTable, InputQuantizers | None]:
    """Return the layers' masters, a format table without steps and ranges yet, and the input quantizers, if any.

    Args:
        plan: the user's options.
        layers: weights and quantised biases by name; their present values become the masters.
        module: the module that owns them.
        pin: the view that a context asks for.
        table, masters: the classes to use.

    Raises:
        NotImplementedError: a weight is sharded over several processes.
        ValueError: a weight is not finite, or there is no layer whose activations could be quantised.
    """
    for name, weight in layers.items():
        if is_sharded(weight):
            raise NotImplementedError(
                f"{name} lies on several processes, but learned formats need whole channels: "
                "use DistributedDataParallel"
            )
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name} holds values that are not finite, to which no step or range can be fitted")
    channels = channels_by_layer(layers, module, per_channel=plan.per_channel)
    counts = [c.count for c in channels]
    sites = InputQuantizers(module, {id(w): n for n, w in layers.items()}, pin) if plan.with_activations else None
    names = () if sites is None else sites.names
    numel = np.repeat([w.numel() // c for w, c in zip(layers.values(), counts, strict=True)], counts)
    formats = table(
        [*layers, *names],
        [*counts, *[1] * len(names)],
        np.concatenate([numel, np.zeros(len(names))]).astype(np.int64),
        np.ones(len(numel) + len(names), np.bool_),
        weights=len(numel),
        floor=plan.floor,
        power_of_two=isinstance(plan, FixedWidths) and plan.power_of_two,
        device=next(iter(layers.values())).device,
    )
    bound(plan, formats)
    return masters(layers, channels, formats), formats, sites


def bound(plan: Plan, formats: FormatTable) -> None:
    """Apply the bounds of `layer_bits` to the word lengths; LSQ's given widths are clipped to them."""
    places = formats.places.items()
    names = [name if place.start < formats.weights else module_site(name) for name, place in places]
    default = (plan.floor, LONGEST_WORD) if isinstance(plan, LearnedWidths) else (plan.words[0], plan.words[-1])
    bounds = np.array(bounds_of(plan.layer_bits or {}, names, default=default), np.int64).reshape(-1, 2)
    lowest, highest = np.repeat(bounds, formats.channels, axis=0).T
    if isinstance(plan, FixedWidths):
        given = np.where(formats.is_weight, plan.weight_bits, plan.activation_bits or 1)
        formats.fixed = np.clip(given, lowest, highest).astype(np.int64)
    formats.bound(lowest, highest)


def first_bits(plan: Plan, formats: FormatTable, averages: Sequence[float]) -> NDArray[np.int64]:
    """Return the initial word lengths: ⌊average of the budget⌋ + 2 bits, at most 16, clipped to each format's bounds.

    Weights and activations each have their own budget. LSQ's widths are given.

    Args:
        averages: the budgets of weights and of activations in bits; infinite if there is none.
    """
    if formats.fixed is not None:
        return formats.fixed
    bits = [
        formats.floor if np.isinf(a) else min(max(int(a + 1e-9), formats.floor) + HEADROOM, LONGEST) for a in averages
    ]
    return np.clip(np.where(formats.is_weight, *bits), formats.lowest, formats.highest).astype(np.int64)


@torch.no_grad()
def begin_weights(plan: Plan, formats: FormatTable, layers: LearnedMasters, bits: NDArray[np.int64]) -> None:
    """Set the weights' first formats: by Gaussian calibration, or by the maximum if a channel is a single number.

    LSQ's steps are set from the mean magnitude.
    """
    step, maximum = torch.ones_like(formats.step), torch.ones_like(formats.maximum)
    first, small = (step if isinstance(plan, FixedWidths) else maximum), torch.tensor(False, device=step.device)
    for i, name in enumerate(layers.names):
        rows, place = layers.rows(i), formats.places[name]
        first[place] = _first_values(rows, None if formats.fixed is None else int(formats.fixed[place.start]))
        if rows.numel():
            reach = gaussian_range(rows.mean(1), rows.std(1, correction=0))
            small |= begins_small(reach, rows.shape[1]).any()
    # If one layer begins near zero, the others grow with it.
    formats.follows = bool(small)
    _set(plan, formats, step, maximum, bits, formats.is_weight)


@torch.no_grad()
def follow_weights(plan: Plan, formats: FormatTable, layers: LearnedMasters) -> Tensor:
    """Scale up the formats that their weights have outgrown; the widths stay. See `adapt.learned.range_growth`.

    Returns:
        Which formats have grown, bool [F].
    """
    present = formats.step if isinstance(plan, FixedWidths) else formats.maximum
    factor = torch.ones_like(present)
    bits = torch.from_numpy(formats.bits).to(formats.device)
    for i, name in enumerate(layers.names):
        rows, place = layers.rows(i), formats.places[name]
        if rows.numel():
            beyond = outgrown(rows, formats.maximum[place], bits[place])
            if isinstance(plan, FixedWidths):
                # By now LSQ's steps learn fast enough. If they kept following, weights and steps would both diverge.
                beyond &= ~has_grown(formats.maximum[place], rows.shape[1])
            given = None if formats.fixed is None else int(formats.fixed[place.start])
            factor[place] = growth(present[place], _first_values(rows, given), beyond)
    grown = factor > 1
    if grown.any():
        formats.sums[grown] = 0
        if isinstance(plan, FixedWidths):
            formats.set_steps(formats.step * factor)
        else:
            formats.shift(factor.log2())
    return grown


def _first_values(rows: Tensor, given: int | None) -> Tensor:
    """Return each channel's first step for LSQ with `given` bits, or else its first range, [channels]."""
    if not rows.numel():
        return rows.new_ones(len(rows))
    if given is not None:
        # Weights that are all zero get the smallest step, which then grows with them.
        return initial_step(rows.abs().mean(1), given, signed=True) * (rows != 0).any(1)
    return gaussian_range(rows.mean(1), rows.std(1, correction=0)) if rows.shape[1] > 1 else rows.abs().amax(1)


@torch.no_grad()
def measure_activations(
    formats: FormatTable, sites: Sequence[str], statistics: Sequence[SiteStatistics]
) -> dict[str, SiteStatistics]:
    """Set the sizes and signs of the activations' formats from calibration.

    Args:
        formats: the table to update.
        sites: the activations' names.
        statistics: the statistics that calibration collected at each.

    Returns:
        The statistics of each activation that calibration reached, by its name.

    Raises:
        ValueError: there is no activation, or calibration reached none, or one without a finite value.
    """
    if not sites:
        raise ValueError(
            "none of the module's layers has an input that can be quantised: they are neither nn.Linear, convolutions "
            "nor transformers' Conv1D, so leave the activations in float32"
        )
    missed = [name for name, one in zip(sites, statistics, strict=True) if not one.elements]
    if len(missed) == len(sites):
        raise ValueError(
            "the calibration batches reached no quantised layer: pass batches as the module's forward takes them, or "
            "leave the activations in float32"
        )
    if missed:
        user_warnings.warn(
            f"the calibration batches did not reach {', '.join(missed)}: these activations stay as they are",
        )
    unknown = [name for name, one in zip(sites, statistics, strict=True) if one.elements and not one.percentiles]
    if unknown:
        raise ValueError(
            f"the calibration batches gave no finite value at {', '.join(unknown[:3])}: leave out batches with NaN"
        )
    zero = [name for name, one in zip(sites, statistics, strict=True) if one.percentiles and not any(one.percentiles)]
    if zero:
        user_warnings.warn(
            f"the calibration batches gave only zeros at {', '.join(zero[:3])}: these inputs begin with a range that "
            "is learned slowly, so train for some steps in float32 before attaching, or initialise the layers before "
            "them with values above zero"
        )
    # Processes may see different shapes, but must agree on the sizes.
    elements = torch.tensor([one.elements for one in statistics], dtype=torch.float64, device=formats.device)
    ranks.maximum_(elements)
    numel, signed, met = formats.numel.copy(), formats.signed.clone(), {}
    for name, one, most in zip(sites, statistics, elements.tolist(), strict=True):
        i = formats.places[name].start
        if one.elements:
            numel[i] = max(round(most), 1)
            signed[i] = ranks.average(float(one.negative)) > 0
            met[name] = one
    formats.set_sizes(numel, signed)
    return met


@torch.no_grad()
def begin_activations(
    plan: Plan, formats: FormatTable, met: Mapping[str, SiteStatistics], bits: NDArray[np.int64]
) -> None:
    """Set the first ranges of activations to the 99.99th percentile, or LSQ's steps to those of least squared error.

    LSQ's published start, 2·E|x|/√Q_P, clips much of what a ReLU passes, because zeros lower the mean. At 2 bits of
    weights and activations a ResNet-20 tuned for an epoch had 46 % with it and 80 % with the least error.
    """
    is_lsq = isinstance(plan, FixedWidths)
    first = formats.step.clone() if is_lsq else formats.maximum.clone()
    for name, one in met.items():
        i = formats.places[name].start
        signed, width = bool(formats.signed[i]), int(bits[i])
        passes = [_best_step(x, width, signed=signed) for x in one.values if len(x)] if is_lsq else one.percentiles
        first[i] = ranks.average(float(np.mean(passes)) if passes else 1.0)
    _set(plan, formats, first, first, bits, ~formats.is_weight)


def _best_step(values: Tensor, bits: int, *, signed: bool) -> float:
    """Return LSQ's step of least squared error for these values of an activation, [n], none of them zero."""
    if signed and bits == 1:
        return float(values.abs().mean())
    low, high = (torch.tensor([float(end)]) for end in bounds(bits, signed=signed))
    return float(best_step(values[None], low, high))


def _set(
    plan: Plan, formats: FormatTable, step: Tensor, maximum: Tensor, bits: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> None:
    """Set these steps (LSQ) or ranges (otherwise) where `chosen` is True."""
    if isinstance(plan, FixedWidths):
        formats.set_steps(torch.where(torch.from_numpy(chosen).to(step.device), step, formats.step))
    else:
        formats.set_widths(bits, chosen, maximum)
